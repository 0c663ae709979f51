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
        compute: What matrix products run in; other than `weights`, through autocast.
        loss_scaling: Dynamic loss scaling, for float16.
        reason: Why, in words a user understands.
        frozen: What the model is held in if only adapters train; None if it trains itself.
    """

    parameters: torch.dtype
    compute: torch.dtype
    loss_scaling: bool
    reason: str
    frozen: torch.dtype | None = None

    @property
    def weights(self) -> torch.dtype:
        """What the model's own weights are read in."""
        return self.frozen or self.parameters

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.compute == self.weights:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)

    def rows(self) -> list[tuple[str, str]]:
        """What the start of a run prints."""
        name = str(self.parameters).removeprefix("torch.")
        frozen = str(self.frozen).removeprefix("torch.")
        held = [("frozen weights", frozen), ("adapters", name)] if self.frozen else []
        return [
            *(held or [("parameters", name)]),
            ("compute", str(self.compute).removeprefix("torch.")),
            ("gradients", name),
            ("optimizer state", name),
            ("loss and reductions", "float32"),
            ("loss scaling", "dynamic" if self.loss_scaling else "none"),
        ]


def plan_precision(
    requested: torch.dtype | Literal["auto"],
    device: torch.device,
    adapters: torch.dtype | None = None,
) -> PrecisionPlan:
    """Decide the dtypes from the YAML's `torch_dtype` and the device.

    Args:
        requested: The YAML's `torch_dtype`.
        device: Where the run is.
        adapters: What adapters are held in; None if the model itself trains.

    Raises:
        UserError: float16 on the CPU, which has no fast float16 and no loss scaling.
    """
    if requested == torch.float16 and device.type != "cuda":
        raise UserError(
            "float16 training needs a GPU: float32 master weights with a scaled loss.",
            fix="write torch_dtype: bfloat16, float32 or auto",
            path=("model", "torch_dtype"),
        )
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    automatic = torch.bfloat16 if fast else torch.float32
    compute = automatic if requested == "auto" else requested
    scaled = requested == torch.float16
    if adapters is not None:
        reason = f"torch_dtype: {requested}, and {adapters} adapters beside it"
        return PrecisionPlan(adapters, compute, scaled, reason, frozen=compute)
    if requested == "auto":
        reason = "auto: float32 master weights, because all of them train"
        return PrecisionPlan(torch.float32, compute, scaled, reason)
    if scaled:
        reason = "float16: float32 master weights, scaled loss"
        return PrecisionPlan(torch.float32, compute, scaled, reason)
    return PrecisionPlan(requested, compute, scaled, f"torch_dtype: {requested}")


def assert_precision(model: torch.nn.Module, plan: PrecisionPlan) -> None:
    """The live model after all wrapping holds what the plan says."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != plan.parameters:
            raise AssertionError(
                f"{name} is {parameter.dtype}, but the precision plan says {plan.parameters}"
            )
