"""`softmax` as one Triton kernel: a program a row, which reads its logits once for the sum of
exponentials (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867) and, from the cache,
once for the gradient that it leaves in their place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from automodel_core.protocols import IGNORE_INDEX
from automodel_losses.softmax import Scores

# Of a row at a time. One row of 128,256 bfloat16 logits is 250 KB; 132 of them are in an H100's
# L2 cache at once.
BLOCK, WARPS = 32768, 32


def statistics(
    logits: torch.Tensor, labels: torch.Tensor, scores: Scores, first: int = 0
) -> torch.Tensor:
    """See `softmax.statistics`. Rows of IGNORE_INDEX aren't read, and tell nothing."""
    known = torch.empty(3, len(labels), device=logits.device)
    _launch(logits, labels, scores, known, first, statistics=True, gradient=False)
    return known


def to_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    scores: Scores,
    log_sum: torch.Tensor,
    first: int = 0,
) -> None:
    """See `softmax.to_gradient`."""
    _launch(logits, labels, scores, log_sum, first, statistics=False, gradient=True)


def losses_then_gradient(
    logits: torch.Tensor, labels: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """See `softmax.losses_then_gradient`."""
    losses = torch.empty(len(labels), device=logits.device)
    _launch(logits, labels, scores, losses, 0, statistics=True, gradient=True)
    return losses


def _launch(
    logits: torch.Tensor,
    labels: torch.Tensor,
    scores: Scores,
    known: torch.Tensor,
    first: int,
    *,
    statistics: bool,
    gradient: bool,
) -> None:
    rows, width = logits.shape
    _row[(rows,)](
        logits,
        labels,
        known,
        logits.stride(0),
        rows,
        first,
        scores.scale,
        scores.cap or 1.0,
        WIDTH=width,
        CAPPED=scores.cap is not None,
        STATISTICS=statistics,
        GRADIENT=gradient,
        IGNORED=IGNORE_INDEX,
        BLOCK=min(BLOCK, triton.next_power_of_2(max(width, 1))),
        num_warps=WARPS,
    )


@triton.jit
def _score(logits, scale, cap, CAPPED: tl.constexpr):
    """tanh(x) is 2 / (1 + exp(-2x)) - 1."""
    score = logits.to(tl.float32) * scale
    if CAPPED:
        score = cap * (2.0 / (1.0 + tl.exp(-2.0 * score / cap)) - 1.0)
    return score


@triton.jit
def _row(
    logits,
    labels,
    known,
    stride,
    rows,
    first,
    scale,
    cap,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    STATISTICS: tl.constexpr,
    GRADIENT: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`known` is written with STATISTICS: `[3, rows]`, or the losses `[rows]` with GRADIENT too.
    Without, it is read: the logarithm of the sum `[rows]`."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    counted = label != IGNORED
    column = label - first
    columns = tl.arange(0, BLOCK)
    if STATISTICS:
        here = counted & (column >= 0) & (column < WIDTH)
        target = _score(tl.load(logits + column, mask=here, other=0.0), scale, cap, CAPPED)
        largest = tl.full((), float("-inf"), tl.float32)
        exponentials = tl.full((), 0.0, tl.float32)
        for start in range(0, WIDTH, BLOCK):
            inside = start + columns < WIDTH
            # Rows that don't count aren't read; they are as if all their logits were 0.
            block = tl.load(logits + start + columns, mask=inside & counted, other=0.0)
            score = tl.where(inside, _score(block, scale, cap, CAPPED), float("-inf"))
            larger = tl.maximum(largest, tl.max(score))
            exponentials = exponentials * tl.exp(largest - larger) + tl.sum(tl.exp(score - larger))
            largest = larger
        log_sum = largest + tl.log(exponentials)
        if GRADIENT:
            # The difference of two large scores first: their sum with the log would round it.
            loss = largest - target + tl.log(exponentials)
            tl.store(known + row, tl.where(counted, loss, 0.0))
        else:
            tl.store(known + row, largest)
            tl.store(known + rows + row, exponentials)
            tl.store(known + 2 * rows + row, target)
    else:
        log_sum = tl.load(known + row)
    if GRADIENT:
        for start in range(0, WIDTH, BLOCK):
            inside = start + columns < WIDTH
            block = tl.load(logits + start + columns, mask=inside & counted, other=0.0)
            score = _score(block, scale, cap, CAPPED)
            gradient = tl.exp(score - log_sum) - tl.where(start + columns == column, 1.0, 0.0)
            gradient *= scale
            if CAPPED:
                gradient *= 1.0 - (score / cap) * (score / cap)
            gradient = tl.where(counted, gradient, 0.0)
            tl.store(logits + start + columns, gradient.to(block.dtype), mask=inside)
