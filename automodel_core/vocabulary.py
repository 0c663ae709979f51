"""Cross-entropy on logits whose vocabulary lies over several ranks, without putting it together.

Under tensor parallelism the output embeddings are cut by tokens of the vocabulary, and what a rank
computes are the logits of its tokens: a DTensor `[..., vocabulary]` that is sharded in its last
dim. A softmax needs of the other ranks no more than the largest logit and the sum of exponentials
of each position (Shoeybi et al. 2019, section 3, https://arxiv.org/abs/1909.08053).

A loss that can work on such logits says so (`Loss.sharded_logits`) and is then given them; to all
others, and to whoever calls the model besides, logits are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional

from automodel_core.protocols import IGNORE_INDEX

T = TypeVar("T")

_left_sharded: ContextVar[bool] = ContextVar("left_sharded", default=False)


def leaving_logits_sharded(compute: Callable[..., T]) -> Callable[..., T]:
    """`compute`, in which a model's output embeddings may leave their logits sharded."""

    def run(*inputs: Any, **named: Any) -> T:
        token = _left_sharded.set(True)
        try:
            return compute(*inputs, **named)
        finally:
            _left_sharded.reset(token)

    return run


def whole_unless_left(logits: DTensor) -> torch.Tensor:
    """For managers: what output embeddings hand on. Every rank must come here with its part."""
    if _left_sharded.get():
        return logits
    return logits.redistribute(placements=[Replicate()]).to_local()


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[label] in float32, summed over the labels that aren't IGNORE_INDEX.

    Args:
        logits: `[..., vocabulary]`, whole, or a DTensor of one mesh dim sharded in the last dim.
        labels: `[...]`, the same on all ranks of that mesh.

    Returns:
        A float32 scalar, the same on all ranks. Without labels it is 0, and so are its gradients.
    """
    if not isinstance(logits, DTensor):
        return functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
    mesh, vocabulary = logits.device_mesh, logits.shape[-1]
    part = logits.to_local().flatten(0, -2)
    first = first_token(mesh, vocabulary)
    return _ShardedCrossEntropy.apply(part, labels.flatten(), first, mesh.get_group())


def first_token(mesh: DeviceMesh, vocabulary: int) -> int:
    """Where this rank's part of the vocabulary begins, cut as torch.chunk does."""
    return mesh.get_local_rank() * -(-vocabulary // mesh.size())


class _ShardedCrossEntropy(torch.autograd.Function):
    """Keeps a rank's logits as they came and two numbers for each position; the backward pass
    computes the softmax again and asks nobody."""

    @staticmethod
    def forward(
        ctx: Any, part: torch.Tensor, labels: torch.Tensor, first: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        """`[tokens, tokens of the vocabulary on this rank]` and `[tokens]` to a scalar."""
        logits = part.float()
        # A rank may have no token of a vocabulary that is smaller than the ranks need.
        largest = functional.pad(logits, (0, 1), value=-torch.inf).amax(dim=1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        column, owned = _place(labels, first, part.shape[1])
        exponentials = (logits - largest[:, None]).exp().sum(dim=1)
        target = _at(logits, column).where(owned, 0.0)
        told = torch.stack([exponentials, target])
        dist.all_reduce(told, group=group)
        log_sum = told[0].log()
        ctx.save_for_backward(part, labels, largest, log_sum)
        ctx.first = first
        # The difference of two large logits first: their sum with the logarithm would round it.
        return (largest - told[1] + log_sum).masked_fill(labels == IGNORE_INDEX, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """softmax - 1 at the label, of this rank's part."""
        part, labels, largest, log_sum = ctx.saved_tensors
        gradient = part.float().sub(largest[:, None]).sub_(log_sum[:, None]).exp_()
        if part.shape[1]:
            column, owned = _place(labels, ctx.first, part.shape[1])
            gradient.scatter_(1, column, (_at(gradient, column) - owned.float())[:, None])
        gradient.mul_(upstream).masked_fill_((labels == IGNORE_INDEX)[:, None], 0.0)
        return gradient.to(part.dtype), None, None, None


def _place(labels: torch.Tensor, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The column `[tokens, 1]` of each label in a rank's part, and whether `[tokens]` it is
    there."""
    column = labels - first
    owned = (column >= 0) & (column < size)
    return column.clamp(0, max(size - 1, 0))[:, None], owned


def _at(rows: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    return rows.gather(1, column)[:, 0] if rows.shape[1] else rows.new_zeros(len(rows))
