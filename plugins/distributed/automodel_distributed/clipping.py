"""The norm of a gradient that is spread over ranks, and clipping to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.gradients import clip_to, squared_norm

# The groups of ranks that each hold another part of a tensor.
Holders = tuple[dist.ProcessGroup, ...]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """As torch.nn.utils.clip_grad_norm_ of the whole gradients, whichever way each is sharded.

    PyTorch's own takes tensors of one mesh only; here every gradient is measured where it lies, in
    float32, and the squares are summed over the ranks that hold the other parts: one all-reduce of
    one number for each way of sharding. What is replicated counts once.

    Args:
        parameters: Those without a gradient don't count. No gradient is an unreduced sum.
        max_norm: Gradients are scaled to this if their norm is above it; None leaves them alone.

    Returns:
        The norm before scaling, a float32 scalar on the gradients' device.
    """
    by_holders: dict[Holders, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            local, holders = local_part(parameter.grad)
            by_holders[holders].append(local)
    squares = []
    for holders, locals_ in by_holders.items():
        square = squared_norm(locals_)
        for group in holders:
            dist.all_reduce(square, group=group)
        squares.append(square)
    if not squares:
        return torch.zeros(())
    total = torch.stack(squares).sum().sqrt()
    if max_norm is not None:
        clip_to(chain.from_iterable(by_holders.values()), max_norm, total)
    return total


def local_part(gradient: torch.Tensor) -> tuple[torch.Tensor, Holders]:
    """This rank's part of a gradient, sharing its memory, and who holds the other parts.

    What isn't replicated is sharded: a tensor cut twice along one dim doesn't call itself `Shard`.
    """
    if not isinstance(gradient, DTensor):
        return gradient, ()
    mesh = gradient.device_mesh
    holders = tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(gradient.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )
    return gradient.to_local(), holders
