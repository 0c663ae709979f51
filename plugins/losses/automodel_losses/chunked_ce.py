"""Cross-entropy over the supervised tokens that never holds the logits of the whole micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from automodel_core.errors import UserError
from automodel_core.vocabulary import cross_entropy_sum
from automodel_losses.known_gradients import chunked_sum


class ChunkedCrossEntropy:
    """The same number as MaskedCrossEntropy, with the logits of `chunk_len` tokens at a time.

    Each chunk's logits are computed, reduced to a loss and its gradients, and forgotten. That saves
    the `tokens x vocabulary` logits, their float32 copy and their gradient, and computes nothing
    twice.

    Args:
        chunk_len: Tokens whose logits are held at once.
    """

    input: ClassVar[Literal["hidden_states"]] = "hidden_states"
    sharded_logits: ClassVar[bool] = True

    def __init__(self, chunk_len: int = 2048) -> None:
        check_chunk_len(chunk_len)
        self.chunk_len = chunk_len

    def __call__(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """-log softmax(head(hidden_states))[label], summed.

        Args:
            hidden_states: `[..., hidden]`.
            labels: `[...]`, already shifted; IGNORE_INDEX where unsupervised.
            head: From hidden states `[tokens, hidden]` to logits `[tokens, vocabulary]`.

        Returns:
            A float32 scalar, the sum over supervised positions.
        """

        def of_chunk(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return cross_entropy_sum(head(hidden), targets)

        return chunked_sum(of_chunk, hidden_states.flatten(0, -2), labels.flatten(), self.chunk_len)


def check_chunk_len(chunk_len: int) -> None:
    """Refuse chunks without tokens.

    Raises:
        UserError: `chunk_len` is below 1.
    """
    if chunk_len < 1:
        raise UserError(
            f"A chunk needs at least one token, not {chunk_len}.",
            fix="write chunk_len: 2048",
            argument="chunk_len",
        )
