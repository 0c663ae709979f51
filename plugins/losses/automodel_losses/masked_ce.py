"""Cross-entropy over the supervised tokens, from all logits at once."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from automodel_core.vocabulary import cross_entropy_sum


class MaskedCrossEntropy:
    """Cross-entropy summed over the supervised tokens; the others count for nothing.

    The softmax is taken in float32 whatever the logits come in: a bfloat16 sum over a vocabulary
    keeps fewer than three digits.
    """

    input: ClassVar[Literal["logits"]] = "logits"
    sharded_logits: ClassVar[bool] = True

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """-log softmax(logits)[label], summed.

        Args:
            logits: `[batch, sequence, vocabulary]`, of any floating dtype, whole or sharded.
            labels: `[batch, sequence]`, already shifted; IGNORE_INDEX where unsupervised.

        Returns:
            A float32 scalar, the sum over supervised positions. Without any it is 0, and so are its
            gradients.
        """
        return cross_entropy_sum(logits, labels)
