"""Which positions of a micro-batch a loss on hidden states is given: those with a label."""

from __future__ import annotations

import numpy as np
import torch

from automodel_core.protocols import IGNORE_INDEX

# Matrix products work on tiles of so many rows, so the rows that fill the last tile cost no time.
# Fewer shapes also leave the allocator's blocks reusable, and compiled heads compiled.
TILE = 128


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor for NumPy, which takes a fraction of torch's time for an operation on
    as few as a micro-batch has; collators leave them on the host, where that copies nothing."""
    return tensor.cpu().numpy()


def supervised_rows(labels: torch.Tensor, tile: int = TILE) -> torch.Tensor | None:
    """The positions that a head must be computed at, found on the CPU where nobody waits for it.

    As many others as fill the last tile come with them; their labels stay IGNORE_INDEX. There is
    always a tile, so ranks and micro-batches without a label do what the others do.

    Args:
        labels: `[batch, sequence]`, shifted, on the CPU.
        tile: The number of rows is a multiple of this.

    Returns:
        int64 `[rows]`, indices into the flattened labels in ascending order, none twice; None if
        they are all positions.
    """
    chosen = on_host(labels).ravel() != IGNORE_INDEX
    supervised = np.count_nonzero(chosen)
    rows = max(-(-supervised // tile), 1) * tile
    if rows >= len(chosen):
        return None
    chosen[np.flatnonzero(~chosen)[: rows - supervised]] = True
    return torch.from_numpy(np.flatnonzero(chosen)).to(labels.device)


def at_rows(
    hidden_states: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states `[batch, sequence, hidden]` and labels `[batch, sequence]` to
    `[rows, hidden]` and `[rows]`."""
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    if rows is None:
        return hidden_states, labels
    return hidden_states.index_select(0, rows), labels.index_select(0, rows)
