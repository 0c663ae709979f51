"""One place decides every dtype of a run; the plan is printed and asserted on the live model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import attrs
import torch

from automodel_core.errors import UserError


@attrs.frozen
class PrecisionPlan:
    """The dtypes of a run.

    Attributes:
        parameters: What the trainable weights are held in (and the gradients and optimizer state).
        frozen: What the weights that don't train are held in; None if all train.
        compute: What matrix products run in; other than `parameters`, through autocast.
        loss_scaling: Dynamic loss scaling, for float16.
        reason: Why, in words a user understands.
    """

    parameters: torch.dtype
    compute: torch.dtype
    loss_scaling: bool
    reason: str
    frozen: torch.dtype | None = None

    @property
    def base(self) -> torch.dtype:
        """What the model is read in."""
        return self.frozen or self.parameters

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.compute == self.parameters:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)

    def rows(self) -> list[tuple[str, str]]:
        """What the start of a run prints."""
        name = str(self.parameters).removeprefix("torch.")
        frozen = [("frozen parameters", str(self.frozen).removeprefix("torch."))]
        return [
            ("parameters", name),
            *(frozen if self.frozen else []),
            ("compute", str(self.compute).removeprefix("torch.")),
            ("gradients", name),
            ("optimizer state", name),
            ("loss and reductions", "float32"),
            ("loss scaling", "dynamic" if self.loss_scaling else "none"),
        ]


def plan_precision(requested: torch.dtype | Literal["auto"], device: torch.device) -> PrecisionPlan:
    """Decide the dtypes from the YAML's `torch_dtype` and the device.

    Raises:
        UserError: float16 on the CPU, which has no fast float16 and no loss scaling.
    """
    on_gpu = device.type == "cuda"
    if requested == "auto":
        fast = on_gpu and torch.cuda.is_bf16_supported()
        return PrecisionPlan(
            torch.float32,
            torch.bfloat16 if fast else torch.float32,
            False,
            "auto: float32 master weights, because all of them train",
        )
    if requested == torch.float16:
        if not on_gpu:
            raise UserError(
                "float16 training needs a GPU: float32 master weights with a scaled loss.",
                fix="write torch_dtype: bfloat16, float32 or auto",
                path=("model", "torch_dtype"),
            )
        return PrecisionPlan(
            torch.float32, torch.float16, True, "float16: float32 master weights, scaled loss"
        )
    return PrecisionPlan(requested, requested, False, f"torch_dtype: {requested}")


def with_adapters(plan: PrecisionPlan, adapters: torch.dtype) -> PrecisionPlan:
    """The plan of a model that stays as it is beside adapters of their own dtype.

    Frozen weights take no updates that could be lost, so they are held in what they compute in.
    """
    return attrs.evolve(
        plan,
        parameters=adapters,
        frozen=plan.compute,
        reason=f"adapters in {str(adapters).removeprefix('torch.')}, frozen weights in what "
        "matrix products run in",
    )


def assert_precision(model: torch.nn.Module, plan: PrecisionPlan) -> None:
    """The live model after all wrapping holds what the plan says."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != plan.parameters:
            raise AssertionError(
                f"{name} is {parameter.dtype}, but the precision plan says {plan.parameters}"
            )
