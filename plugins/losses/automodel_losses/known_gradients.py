"""Losses whose gradients are computed in the forward pass, chunk by chunk.

A chunk's logits are needed for its loss and for its gradient. Taking both at once, before the next
chunk, they need be neither kept nor computed twice (Hsu et al. 2024, Liger Kernel,
https://arxiv.org/abs/2410.10989, section 3.2). The backward pass is then a product with a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def with_known_gradients(
    value: torch.Tensor, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> torch.Tensor:
    """`value` as a function of `inputs`, for autograd.

    Args:
        value: A scalar.
        inputs: What it was computed from; they require gradients.
        gradients: Of the value by each. They are handed on by the backward pass, which changes them
            in place and can come only once.
    """
    return _KnownGradients.apply(value, list(gradients), *inputs)


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("The gradients of this loss were handed on already.")
        for gradient in gradients:  # of DTensors the rank's own part, which a scalar scales alike
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.mul_(upstream)
        return None, None, *gradients


def chunked_sum(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    chunk_len: int,
) -> torch.Tensor:
    """The sum of `compute` over chunks of the rows, differentiable by the hidden states and by
    whatever parameters autograd finds in it.

    Only one chunk's graph exists at a time, and each parameter's gradient only once. It is summed
    in the parameter's dtype, as autograd does.

    Args:
        compute: From hidden states `[chunk, hidden]` and labels `[chunk]` to a scalar. Its
            parameters are leaves of the graph, the same in every chunk.
        hidden_states: `[rows, hidden]`.
        labels: `[rows]`.
        chunk_len: Rows of a chunk.
    """
    pairs = zip(hidden_states.split(chunk_len), labels.split(chunk_len), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([compute(*pair) for pair in pairs]).sum()
    losses: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    parameters: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for hidden, targets in pairs:
        hidden = hidden.detach().requires_grad_(hidden_states.requires_grad)
        loss = compute(hidden, targets)
        if not losses:
            parameters = leaves(loss, besides=hidden)
        losses.append(loss.detach())
        if hidden.requires_grad:
            part, *gradients = torch.autograd.grad(loss, [hidden, *parameters])
            parts.append(part)
        elif parameters:
            gradients = torch.autograd.grad(loss, parameters)
        else:
            continue
        sums = _added(sums, gradients)
    value = torch.stack(losses).sum()
    if parts:
        return with_known_gradients(value, [hidden_states, *parameters], [torch.cat(parts), *sums])
    return with_known_gradients(value, parameters, sums) if parameters else value


def leaves(value: torch.Tensor, besides: torch.Tensor) -> list[torch.Tensor]:
    """What autograd would leave a gradient of `value` in, in the order in which it is found."""
    found: dict[int, torch.Tensor] = {}
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad" and node.variable is not besides:
            found[id(node.variable)] = node.variable
        nodes.extend(following for following, _ in node.next_functions)
    return list(found.values())


def _added(sums: list[torch.Tensor], more: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`more` added to `sums` in place; the first of all become the sums.

    Autograd may hand out one tensor as the gradient of several, which can't be changed in place.
    """
    if not sums:
        return [each.clone() if _shared(each, more) else each for each in more]
    for total, each in zip(sums, more, strict=True):
        total.add_(each)
    return sums


def _shared(tensor: torch.Tensor, among: Sequence[torch.Tensor]) -> bool:
    """Whether some of its memory belongs to more than one element."""

    def memory(each: torch.Tensor) -> torch.UntypedStorage:
        return (each.to_local() if isinstance(each, DTensor) else each).untyped_storage()

    mine = memory(tensor)
    expanded = 0 in tensor.stride()
    return expanded or sum(memory(each).data_ptr() == mine.data_ptr() for each in among) > 1
