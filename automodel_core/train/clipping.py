"""Gradients that the optimizer scales down itself as it reads them, instead of a pass before it.

PyTorch's fused optimizers divide every gradient by the tensor `grad_scale`, if they have that
attribute, before they round anything; it was made for `torch.amp.GradScaler`, which leaves alone
what stands there when it has unscaled the gradients already. Some write the quotients back: what
gradients are after the update is not to be relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def scales_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer honours `grad_scale` and `found_inf`.

    Others than PyTorch's have the flag and look for neither, since they were made for a GradScaler
    that is passed to `step`: they would take steps that aren't clipped. So its groups must say as
    well that their updates are fused, and the step must be PyTorch's, or its class say that it
    `honours_grad_scale`.
    """
    kind = type(optimizer)
    flag = getattr(optimizer, "_step_supports_amp_scaling", False)
    flag = flag and (
        kind.step.__module__.startswith("torch.optim.")
        or getattr(kind, "honours_grad_scale", False)
    )
    return flag and all(group.get("fused") for group in optimizer.param_groups)


@contextmanager
def clipped_update(
    optimizer: torch.optim.Optimizer, norm: torch.Tensor, max_norm: float | None
) -> Iterator[None]:
    """The context of an update that scales gradients to `max_norm` if `norm` is above it.

    Args:
        optimizer: One that `scales_gradients`; with others, gradients are scaled already.
        norm: Of the gradients as they stand, a scalar on the device; nobody waits for it.
        max_norm: None scales nothing.
    """
    if max_norm is None or not scales_gradients(optimizer):
        yield
        return
    # As torch.nn.utils.clip_grad_norm_, upside down; the kernels read a float32.
    optimizer.grad_scale = ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)
    try:
        yield
    finally:
        vars(optimizer).pop("grad_scale", None)  # which GradScaler.step deletes as well
