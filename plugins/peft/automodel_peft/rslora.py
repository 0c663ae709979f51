"""rsLoRA: a scale that keeps high ranks learning."""

from __future__ import annotations

import math
from typing import ClassVar

import attrs

from automodel_peft.lora import PeftConfig


@attrs.define(kw_only=True)
class RsLora(PeftConfig):
    """LoRA scaled by alpha / sqrt(dim) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

    With alpha / dim the update of a high rank learns more slowly than that of a low one.
    """

    name: ClassVar[str] = "rsLoRA"
    use_rslora: ClassVar[bool] = True

    def scale(self, alpha: float, rank: int) -> float:
        """What an update of that rank is multiplied by."""
        return alpha / math.sqrt(rank)
