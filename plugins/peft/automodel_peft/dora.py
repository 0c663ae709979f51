"""DoRA: length and direction of the weights tuned apart."""

from __future__ import annotations

from typing import ClassVar

import attrs

from automodel_peft.dora_layers import DoraEmbedding, DoraLinear
from automodel_peft.layers import AdaptedLayer
from automodel_peft.lora import PeftConfig


@attrs.define(kw_only=True)
class Dora(PeftConfig):
    """LoRA of the weights' directions, with their lengths trained beside it (Liu et al. 2024,
    https://arxiv.org/abs/2402.09353).

    Costs a pass over the frozen weights per step and keeps one more activation per adapted layer.
    """

    name: ClassVar[str] = "DoRA"
    linear: ClassVar[type[AdaptedLayer]] = DoraLinear
    embedding: ClassVar[type[AdaptedLayer]] = DoraEmbedding
    use_dora: ClassVar[bool] = True
