"""The loss of a run whose YAML names none."""

from __future__ import annotations

from typing import ClassVar

from automodel_core.protocols import Loss
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy


class CrossEntropy(FusedLinearCrossEntropy):
    """`fused_linear_ce`, and `masked_ce` for models that it can't be used with: those that do more
    than is known of between their hidden states and their logits.

    Args:
        chunk_len: Tokens whose logits are held at once.
    """

    on_logits: ClassVar[Loss] = MaskedCrossEntropy()
