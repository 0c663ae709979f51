"""Packed rows of samples that only the collator turns into tokens, those with images.

The collator makes a row of each document, as without packing; here the documents' tokens are put
behind each other. Pixels and the like stay in the order of the documents, by which models find
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch.nn.utils.rnn import pad_sequence

from automodel_core.protocols import IGNORE_INDEX, Batch
from automodel_core.train.lengths import Collate

# The key of a packed row whose documents aren't tokens yet.
DOCUMENTS = "documents"


@attrs.frozen
class OfRows:
    """The YAML's collator, for rows of several documents too.

    Args:
        collate: Takes documents.
    """

    collate: Collate

    def __call__(self, rows: Sequence[Any]) -> Batch:
        if DOCUMENTS not in rows[0]:
            return self.collate(rows)
        batch = self.collate([document for row in rows for document in row[DOCUMENTS]])
        return joined(batch, [len(row[DOCUMENTS]) for row in rows])


def joined(batch: Batch, counts: Sequence[int]) -> Batch:
    """Documents behind each other.

    Args:
        batch: A document in each row, `[documents, sequence]`, padded on either side.
        counts: How many of them stand in each row of the result.

    Returns:
        The same with `[rows, sequence]`, padded on the right only.
    """
    real = batch["attention_mask"] != 0
    tokens = [part.sum().item() for part in real.split(list(counts))]
    pads = batch["input_ids"][~real]
    fill = {"labels": IGNORE_INDEX, "input_ids": pads[0].item() if len(pads) else 0}
    return batch | {
        name: pad_sequence(
            batch[name][real].split(tokens), batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in of_tokens(batch)
    }


def apart(batch: Batch) -> Batch:
    """What `joined` has put behind each other, a document in each row again: what is of tokens,
    padded on the right with zeros. Documents begin where positions do."""
    real = batch["attention_mask"] != 0
    starts = (batch["position_ids"][real] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], int(real.sum())]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    return {
        name: pad_sequence(batch[name][real].split(lengths), batch_first=True)
        for name in of_tokens(batch)
    }


def of_tokens(batch: Batch) -> list[str]:
    """What has a whole number for each token; pixels can have that shape by chance."""
    shape = batch["labels"].shape
    return [
        name
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
        and value.shape == shape
        and not value.is_floating_point()
    ]


def is_packed(batch: Batch) -> bool:
    """Whether a document begins behind another."""
    positions, real = batch["position_ids"], batch["attention_mask"] != 0
    return bool(((positions[:, 1:] == 0) & real[:, 1:] & real[:, :-1]).any())
