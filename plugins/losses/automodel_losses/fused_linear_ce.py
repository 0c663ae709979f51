"""Cross-entropy and its gradients from hidden states and output embeddings, as products of cuBLAS
with one kernel between them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import subprocess
from collections.abc import Callable
from types import ModuleType
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.head import Head, Linear
from automodel_core.vocabulary import first_token
from automodel_losses import softmax
from automodel_losses.chunked_ce import ChunkedCrossEntropy, check_chunk_len
from automodel_losses.known_gradients import with_known_gradients
from automodel_losses.softmax import Scores

logger = logging.getLogger(__name__)


class FusedLinearCrossEntropy:
    """The same number as MaskedCrossEntropy, with one chunk of logits in memory and no copy of it.

    Each chunk's logits are written by one product, turned into their own gradient in place by one
    kernel (Triton's on a GPU), and read by the two products that make the gradients of the hidden
    states and of the output embeddings; by only the first of these if the embeddings are frozen.
    All of that is in the forward pass. The idea is Liger's (Hsu et al. 2024,
    https://arxiv.org/abs/2410.10989).

    Output embeddings that are no plain product, such as adapted ones, are computed as `chunked_ce`
    does.

    Args:
        chunk_len: Tokens whose logits are held at once.
    """

    input: ClassVar[Literal["hidden_states"]] = "hidden_states"
    sharded_logits: ClassVar[bool] = True

    def __init__(self, chunk_len: int = 2048) -> None:
        check_chunk_len(chunk_len)
        self.chunk_len = chunk_len
        self._of_any_head = ChunkedCrossEntropy(chunk_len)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        head: Head | Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """-log softmax(head(hidden_states))[label], summed.

        Args:
            hidden_states: `[..., hidden]`.
            labels: `[...]`, already shifted; IGNORE_INDEX where unsupervised.
            head: From hidden states to logits.

        Returns:
            A float32 scalar, the sum over supervised positions.
        """
        linear = head.linear() if isinstance(head, Head) else None
        if linear is None:
            return self._of_any_head(hidden_states, labels, head)
        return linear_cross_entropy(
            hidden_states.flatten(0, -2), labels.flatten(), linear, self.chunk_len
        )


class Part(NamedTuple):
    """This rank's tokens of the vocabulary.

    Attributes:
        weight: `[tokens, hidden]`, in the dtype that is computed in.
        bias: `[tokens]`, likewise.
        first: The first of them.
        group: The ranks that have the others; None if there are none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    first: int = 0
    group: dist.ProcessGroup | None = None


class Gradients(NamedTuple):
    """Where they are summed, in the dtype of what they are of; None for what doesn't train.

    Attributes:
        hidden: `[rows, hidden]`.
        weight: `[tokens, hidden]`, of this rank's tokens.
        bias: `[tokens]`.
    """

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def linear_cross_entropy(
    hidden_states: torch.Tensor, labels: torch.Tensor, linear: Linear, chunk_len: int
) -> torch.Tensor:
    """The sum of the token losses, differentiable by hidden states, weight and bias.

    Args:
        hidden_states: `[rows, hidden]`.
        labels: `[rows]`.
        linear: The head.
        chunk_len: Rows whose logits are held at once.
    """
    device, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    inputs = (hidden_states, linear.weight, linear.bias)
    scores = Scores(linear.scale, linear.cap)
    gradients = Gradients(*(room_for_gradient(each) for each in inputs))
    with torch.no_grad(), torch.autocast(device, enabled=False):
        part, rows = part_of(linear, dtype), hidden_states.to(dtype)
        losses = [
            chunk_loss(rows, labels, part, scores, gradients, slice(start, start + chunk_len))
            for start in range(0, len(rows), chunk_len)
        ]
        if part.group is not None and gradients.hidden is not None:
            dist.all_reduce(gradients.hidden, group=part.group)
        value = torch.stack(losses).sum()
    trained = [
        (each, as_its_own(gradient, each))
        for each, gradient in zip(inputs, gradients, strict=True)
        if gradient is not None
    ]
    return with_known_gradients(value, *zip(*trained, strict=True)) if trained else value


def part_of(linear: Linear, dtype: torch.dtype) -> Part:
    """What of the head is on this rank."""
    weight, bias = (each if each is None else local(each).to(dtype) for each in linear[:2])
    if not isinstance(linear.weight, DTensor):
        return Part(weight, bias)
    mesh = linear.weight.device_mesh
    return Part(weight, bias, first_token(mesh, len(linear.weight)), mesh.get_group())


def chunk_loss(
    rows: torch.Tensor,
    labels: torch.Tensor,
    part: Part,
    scores: Scores,
    gradients: Gradients,
    chunk: slice,
) -> torch.Tensor:
    """The loss of one chunk of the rows; writes or adds its gradients."""
    rows, labels = rows[chunk], labels[chunk]
    logits = torch.nn.functional.linear(rows, part.weight, part.bias)
    nll = over_logits(logits, labels, part, scores, gradient=any(g is not None for g in gradients))
    if gradients.hidden is not None:
        gradients.hidden[chunk] = logits @ part.weight
    if gradients.weight is not None:
        add_product(gradients.weight, logits.T, rows, first=chunk.start == 0)
    if gradients.bias is not None:
        of_bias = logits.sum(dim=0, dtype=torch.float32)
        gradients.bias.copy_(of_bias if chunk.start == 0 else gradients.bias + of_bias)
    return nll


def over_logits(
    logits: torch.Tensor, labels: torch.Tensor, part: Part, scores: Scores, *, gradient: bool
) -> torch.Tensor:
    """The loss of logits `[rows, tokens]`, which become their gradient if that is wanted."""
    kernels = softmax_on(logits.device.type)
    if gradient and part.group is None:
        return kernels.losses_then_gradient(logits, labels, scores).sum()
    known = kernels.statistics(logits, labels, scores, part.first)
    if part.group is not None:
        known = over_ranks(known, part.group)
    if gradient:
        log_sum = known[0] + known[1].log()
        kernels.to_gradient(logits, labels, scores, log_sum, part.first)
    return token_losses(known, labels).sum()


def over_ranks(known: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`softmax.statistics` of the whole vocabulary, from those of each rank's part."""
    largest = known[0].clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    told = torch.stack([known[1] * (known[0] - largest).exp(), known[2]])
    dist.all_reduce(told, group=group)
    return torch.stack([largest, *told])


def token_losses(known: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float32 `[rows]`; 0 at IGNORE_INDEX."""
    largest, exponentials, target = known
    # The difference of two large scores first: their sum with the logarithm would round it.
    return (largest - target + exponentials.log()).masked_fill(labels == IGNORE_INDEX, 0.0)


def add_product(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, first: bool
) -> None:
    """`total += left @ right`, or `=` at first, without a copy of the product where it can be."""
    beta = 0 if first else 1
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=beta)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)
    else:
        product = left @ right
        total.copy_(product if first else total + product)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def room_for_gradient(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Memory for what a rank computes of a tensor's gradient, if it has one."""
    if tensor is None or not (tensor.requires_grad and torch.is_grad_enabled()):
        return None
    return torch.empty_like(local(tensor.detach()), memory_format=torch.contiguous_format)


def as_its_own(gradient: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """A gradient as a DTensor if what it is of is one."""
    if not isinstance(of, DTensor):
        return gradient
    return DTensor.from_local(
        gradient,
        of.device_mesh,
        of.placements,
        run_check=False,
        shape=of.shape,
        stride=of.stride(),
    )


@functools.cache
def softmax_on(device: str) -> ModuleType:
    """`softmax_triton` on GPUs where Triton works, else `softmax`.

    Triton compiles with the machine's C compiler and Python's headers, which may be missing; only a
    launch tells.
    """
    if device != "cuda" or importlib.util.find_spec("triton") is None:
        return softmax
    kernels = importlib.import_module("automodel_losses.softmax_triton")
    logits = torch.zeros(1, 16, device=device)
    try:
        kernels.losses_then_gradient(logits, logits[0, :1].long(), Scores())
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        logger.warning(
            "Triton can't compile here, so PyTorch does its part of the loss, slower: %s",
            str(error).partition("\n")[0],
        )
        return softmax
    return kernels
