"""LoRA+: the two factors of an update learn at different rates."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_peft.export import adapted_layers
from automodel_peft.lora import PeftConfig


@attrs.define(kw_only=True)
class LoraPlus(PeftConfig):
    """LoRA whose B learns faster than its A (Hayou et al. 2024, https://arxiv.org/abs/2402.12354).

    Its files are those of LoRA.

    Args:
        lr_ratio: The learning rate of B over that of A, which is the optimizer's `lr`.
    """

    lr_ratio: float = 16.0

    name: ClassVar[str] = "LoRA+"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.lr_ratio <= 0:
            raise UserError(
                f"lr_ratio is a positive number, not {self.lr_ratio:g}.",
                fix="write lr_ratio: 16",
                argument="lr_ratio",
            )

    def parameter_groups(self, model: PreTrainedModel, lr: float) -> list[dict[str, Any]]:
        """Two groups: all that trains but the Bs at `lr`, the Bs at `lr_ratio * lr`."""
        second = [layer.trained_factors()[1] for layer in adapted_layers(model).values()]
        fast = {id(parameter) for parameter in second}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in fast]
        return [{"params": rest, "lr": lr}, {"params": second, "lr": lr * self.lr_ratio}]
