"""Cross-entropy over the supervised tokens that never holds the logits of the whole micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch.utils.checkpoint import checkpoint

from automodel_core.errors import UserError
from automodel_losses.masked_ce import MaskedCrossEntropy


class ChunkedCrossEntropy:
    """The same number as MaskedCrossEntropy, with the logits of `chunk_len` tokens at a time.

    Each chunk's logits are computed, reduced to a loss and forgotten, and computed again when the
    backward pass comes to them (activation checkpointing, Chen et al. 2016,
    https://arxiv.org/abs/1604.06174). That costs one more product with the output embeddings, and
    saves the `tokens x vocabulary` logits, their float32 copy and their gradient.

    Args:
        chunk_len: Tokens whose logits are held at once.
    """

    input: ClassVar[Literal["hidden_states"]] = "hidden_states"
    sharded_logits: ClassVar[bool] = True

    def __init__(self, chunk_len: int = 2048) -> None:
        if chunk_len < 1:
            raise UserError(
                f"A chunk needs at least one token, not {chunk_len}.",
                fix="write chunk_len: 2048",
                argument="chunk_len",
            )
        self.chunk_len = chunk_len
        self._loss_of_logits = MaskedCrossEntropy()

    def __call__(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """-log softmax(head(hidden_states))[label], summed.

        Args:
            hidden_states: `[batch, sequence, hidden]`.
            labels: `[batch, sequence]`, already shifted; IGNORE_INDEX where unsupervised.
            head: From hidden states `[tokens, hidden]` to logits `[tokens, vocabulary]`.

        Returns:
            A float32 scalar, the sum over supervised positions.
        """

        def chunk_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self._loss_of_logits(head(hidden), targets)

        chunks = zip(
            hidden_states.flatten(0, -2).split(self.chunk_len),
            labels.flatten().split(self.chunk_len),
            strict=True,
        )
        losses = [
            checkpoint(chunk_loss, hidden, targets, use_reentrant=False)
            for hidden, targets in chunks
        ]
        return torch.stack(losses).sum()
