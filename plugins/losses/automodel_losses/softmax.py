"""The element-wise part of a linear cross-entropy: logits in, their gradient out, in one memory.

`softmax_triton` does the same in one kernel on a GPU; this is what it is tested against, and what
runs elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from automodel_core.protocols import IGNORE_INDEX


class Scores(NamedTuple):
    """What logits become before the softmax: `cap * tanh(scale * logits / cap)`.

    Attributes:
        scale: What logits are multiplied by.
        cap: What bounds them, after that; None for nothing.
    """

    scale: float = 1.0
    cap: float | None = None


def statistics(
    logits: torch.Tensor, labels: torch.Tensor, scores: Scores, first: int = 0
) -> torch.Tensor:
    """What a softmax over ranks needs of each: the largest score of a row, the sum of exponentials
    of the others' distances from it, and the label's score.

    Args:
        logits: `[rows, tokens of the vocabulary]`.
        labels: `[rows]`, as the whole vocabulary counts.
        scores: From logits to scores.
        first: The first token of the vocabulary that is here.

    Returns:
        float32 `[3, rows]`. A label that isn't here has the score 0. What rows of IGNORE_INDEX tell
        means nothing.
    """
    score = _score(logits, scores)
    if not logits.shape[1]:  # a rank may have none of a small vocabulary
        return score.new_tensor([-torch.inf, 0.0, 0.0])[:, None].expand(3, len(labels)).clone()
    largest = score.amax(dim=1)
    exponentials = (score - largest[:, None]).exp_().sum(dim=1)
    column, here = _place(labels, first, logits.shape[1])
    target = score.gather(1, column[:, None])[:, 0].where(here, 0.0)
    return torch.stack([largest, exponentials, target])


def to_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    scores: Scores,
    log_sum: torch.Tensor,
    first: int = 0,
) -> None:
    """Overwrite logits with the gradient of `sum(log_sum - score of the label)` by them.

    Args:
        logits: `[rows, tokens of the vocabulary]`.
        labels: `[rows]`; rows of IGNORE_INDEX become 0.
        scores: From logits to scores.
        log_sum: float32 `[rows]`, the logarithm of the sum of exponentials over the vocabulary.
        first: The first token of the vocabulary that is here.
    """
    if not logits.shape[1]:
        return
    score = _score(logits, scores)
    gradient = (score - log_sum[:, None]).exp_()
    column, here = _place(labels, first, logits.shape[1])
    gradient.scatter_add_(1, column[:, None], -here.float()[:, None])
    _through(scores, score, gradient)
    logits.copy_(gradient.masked_fill_((labels == IGNORE_INDEX)[:, None], 0.0))


def losses_then_gradient(
    logits: torch.Tensor, labels: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """The token losses, float32 `[rows]` and 0 at IGNORE_INDEX; logits of a whole vocabulary become
    their sum's gradient, as by `to_gradient`."""
    score = _score(logits, scores)
    ignored = labels == IGNORE_INDEX
    column = labels.masked_fill(ignored, 0)[:, None]
    log_softmax = score.log_softmax(dim=1)
    losses = -log_softmax.gather(1, column)[:, 0]
    gradient = log_softmax.exp_()
    gradient.scatter_add_(1, column, gradient.new_full((), -1.0).expand_as(column))
    _through(scores, score, gradient)
    logits.copy_(gradient.masked_fill_(ignored[:, None], 0.0))
    return losses.masked_fill_(ignored, 0.0)


def _through(scores: Scores, score: torch.Tensor, gradient: torch.Tensor) -> None:
    """The gradient by scores to that by logits, in place."""
    if scores.scale != 1.0:
        gradient.mul_(scores.scale)
    if scores.cap is not None:
        gradient.mul_(1 - (score / scores.cap).square_())


def _score(logits: torch.Tensor, scores: Scores) -> torch.Tensor:
    score = logits.float()
    if scores.scale != 1.0:
        score = score * scores.scale
    return score if scores.cap is None else torch.tanh(score / scores.cap) * scores.cap


def _place(labels: torch.Tensor, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The column `[rows]` of each label, and whether it is here."""
    column = labels - first
    return column.clamp(0, size - 1), (column >= 0) & (column < size)
