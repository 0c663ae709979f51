"""The loss scale of float16, one for all ranks.

Gradients below 6e-8 are zero in float16, so the loss is multiplied by a factor which grows until
gradients overflow; the step of that gradient is left out, and the factor halved (Micikevicius et
al., "Mixed Precision Training", 2018). Where gradients are spread over ranks, an overflow is seen
by the rank that holds the element alone: unless all leave the step out, the model comes apart.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def loss_scaler(device: torch.device, *, enabled: bool, alone: bool) -> torch.amp.GradScaler:
    """What scales the loss, or leaves it as it is, and takes optimizer steps.

    Args:
        device: Where the loss is.
        enabled: Whether matrix products are in float16.
        alone: Whether this is the run's only process.
    """
    kind = torch.amp.GradScaler if alone else AgreedScaler
    return kind(device.type, enabled=enabled)


class AgreedScaler(torch.amp.GradScaler):
    """PyTorch's scaler, with a step that all ranks take or none.

    Gradients are looked at where they lie, whichever way each is sharded, and the largest of the
    ranks' findings counts: one all-reduce of one number a step, which the host doesn't wait for.
    """

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: torch.Tensor,
        found_inf: torch.Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, torch.Tensor]:
        """Multiply gradients by `inv_scale`; on each of their devices, above 0 on every rank if one
        of them found an infinite or NaN element."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        found = {found_inf.device: found_inf}  # told even if this rank holds no gradient
        gradients = sorted((local(p.grad) for p in parameters if p.grad is not None), key=kind_of)
        for (device, _), same in groupby(gradients, key=kind_of):
            place = torch.device(device)
            flag = found.setdefault(place, torch.zeros_like(found_inf, device=place))
            torch._amp_foreach_non_finite_check_and_unscale_(list(same), flag, inv_scale.to(place))
        anywhere = torch.stack([each.to(found_inf.device) for each in found.values()]).amax()
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
        return {found_inf.device: anywhere}


def kind_of(gradient: torch.Tensor) -> tuple[str, str]:
    """Gradients of one kind are looked at together."""
    return str(gradient.device), str(gradient.dtype)


def local(gradient: Any) -> torch.Tensor:
    """This rank's part, sharing its memory."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
