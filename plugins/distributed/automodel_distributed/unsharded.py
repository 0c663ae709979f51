"""The gradients that FSDP2 does not reduce: those of adapters, and all where it isn't used.

Adapters are a thousandth of a model. Inside the sharded units they would be gathered with every
layer, and older PyTorch asks for one dtype per unit, where adapters are float32 beside a bfloat16
model. So FSDP2 is told to leave them alone, and their gradients are summed in one message after a
step's last backward pass, as are those that tensor parallelism left as a share on each rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

Groups = tuple[dist.ProcessGroup, ...]


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], groups: Groups) -> None:
    """Replace every gradient by its sum over the ranks.

    Args:
        parameters: The same on every rank, plain or DTensors. One that took no part on this rank
            adds zero.
        groups: The ranks with other samples; the sum is over the first, then the second.
    """
    messages: dict[tuple[torch.dtype, Groups], list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        local, shares = _taken_apart(parameter)
        if shares or groups:
            messages[parameter.dtype, shares + groups].append(local)
    for (_, summed_over), gradients in messages.items():
        message = torch.cat([gradient.flatten() for gradient in gradients])
        for group in summed_over:
            dist.all_reduce(message, group=group)
        parts = message.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view_as(each) for each, part in zip(gradients, parts, strict=True)]
        )


def _taken_apart(parameter: nn.Parameter) -> tuple[torch.Tensor, Groups]:
    """A gradient's memory on this rank, and the groups whose ranks each have a share of it. The
    gradient is called whole already."""
    gradient = parameter.grad
    if not isinstance(gradient, DTensor):
        return gradient, ()
    mesh, local = gradient.device_mesh, gradient.to_local()
    shares = [dim for dim, placement in enumerate(gradient.placements) if placement.is_partial()]
    if shares:
        placements = [Replicate() if p.is_partial() else p for p in gradient.placements]
        parameter.grad = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=gradient.shape, stride=gradient.stride()
        )
    return local, tuple(mesh.get_group(dim) for dim in shares)
