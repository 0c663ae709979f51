"""Parameters that every rank holds whole, and whose gradients are summed by us.

Adapters are a thousandth of a model. Inside the sharded units they would be gathered with every
layer, and older PyTorch asks for one dtype per unit, where adapters are float32 beside a bfloat16
model. So FSDP2 is told to leave them alone, and their gradients are summed in one message after a
step's last backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], groups: Sequence[dist.ProcessGroup]) -> None:
    """Replace every gradient by its sum over the ranks.

    Args:
        parameters: The same on every rank. One that took no part on this rank adds zero.
        groups: The sum is taken over the first, then over the second, and so on.
    """
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype[parameter.dtype].append(parameter.grad)
    for gradients in by_dtype.values():
        message = torch.cat([gradient.flatten() for gradient in gradients])
        for group in groups:
            dist.all_reduce(message, group=group)
        parts = message.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
