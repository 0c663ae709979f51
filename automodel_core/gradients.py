"""The norm of gradients, and scaling them to one, in one message to the device for each dtype."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch


@torch.no_grad()
def squared_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the squares of all elements, in float32 whatever their dtype: a scalar on their
    device. bfloat16 would leave it two digits."""
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()


@torch.no_grad()
def clip_to(gradients: Iterable[torch.Tensor], max_norm: float, norm: torch.Tensor) -> None:
    """Scale gradients in place by `max_norm / (norm + 1e-6)` where that is below 1, as
    torch.nn.utils.clip_grad_norm_ does. `norm` is a scalar on their device; nobody waits for it.
    """
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_dtype[gradient.dtype].append(gradient)
    for dtype, same in by_dtype.items():
        # A factor of another dtype would send PyTorch through the tensors one by one.
        torch._foreach_mul_(same, factor.to(dtype))
