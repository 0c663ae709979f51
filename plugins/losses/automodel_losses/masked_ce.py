"""Cross-entropy over the supervised tokens, from whole logits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch.nn import functional

from automodel_core.protocols import IGNORE_INDEX


class MaskedCrossEntropy:
    """Cross-entropy summed over the supervised tokens; the others count for nothing.

    The softmax is taken in float32 whatever the logits come in: a bfloat16 sum over a vocabulary
    keeps fewer than three digits.
    """

    input: ClassVar[Literal["logits"]] = "logits"

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """-log softmax(logits)[label], summed.

        Args:
            logits: `[batch, sequence, vocabulary]`, of any floating dtype.
            labels: `[batch, sequence]`, already shifted; IGNORE_INDEX where unsupervised.

        Returns:
            A float32 scalar, the sum over supervised positions. Without any it is 0, and so are its
            gradients.
        """
        return functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
