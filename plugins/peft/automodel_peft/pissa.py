"""PiSSA: adapters that start from the principal part of the weights."""

from __future__ import annotations

from typing import ClassVar

import attrs

from automodel_core.errors import UserError
from automodel_peft.layers import AdaptedLayer
from automodel_peft.lora import PeftConfig
from automodel_peft.pissa_layers import PissaEmbedding, PissaLinear


@attrs.define(kw_only=True)
class Pissa(PeftConfig):
    """LoRA that starts from the principal singular vectors of the weights (Meng et al. 2024,
    https://arxiv.org/abs/2404.02948).

    The files hold a LoRA of rank 2 * dim on the original model, which any program opens. Weight
    decay pulls the adapter towards its start, not the principal part towards zero.
    """

    name: ClassVar[str] = "PiSSA"
    linear: ClassVar[type[AdaptedLayer]] = PissaLinear
    embedding: ClassVar[type[AdaptedLayer]] = PissaEmbedding
    ranks_per_dim: ClassVar[int] = 2

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.adapter_path is not None:
            raise UserError(
                "PiSSA starts from the weights of the model, not from an adapter.",
                fix="write _target_: lora to go on from a finished PiSSA adapter",
                argument="adapter_path",
            )
