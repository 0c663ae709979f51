"""Collated batches taken apart again: the documents in each row, and the pads around them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from automodel_core.protocols import IGNORE_INDEX, Batch
from automodel_core.train.samples import sample_of_tokens

# From the first supervised token to just after the last.
Span = tuple[int, int]


@attrs.frozen(eq=False)
class Document:
    """One sample, as it stands in a row that the model is given.

    Attributes:
        ids: Its tokens, `[tokens]`.
        labels: Aligned with them; IGNORE_INDEX where nothing is learned.
        sample: Which of the data set it is, if the batch tells.
    """

    ids: np.ndarray
    labels: np.ndarray
    sample: int | None = None

    @property
    def supervised(self) -> np.ndarray:
        """Whether each token is learned. The first of a document is predicted by nothing."""
        return np.concatenate([[False], self.labels[1:] != IGNORE_INDEX])

    def spans(self) -> list[Span]:
        """Where tokens are learned without a break."""
        edges = np.flatnonzero(np.diff([0, *self.supervised.astype(int), 0])).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))


@attrs.frozen(eq=False)
class Row:
    """One row of a batch.

    Attributes:
        documents: More than one only if it is packed.
        pads: How many of its tokens are padding.
        learned_pads: How many of those are supervised all the same.
    """

    documents: tuple[Document, ...]
    pads: int
    learned_pads: int


def rows_of(batch: Batch) -> Iterator[Row]:
    """The rows of a collated batch. A document begins where the positions begin again."""
    samples = sample_of_tokens(batch) if "sample_id" in batch else None
    for number in range(len(batch["input_ids"])):
        ids, labels, real, positions = (
            np.asarray(batch[name][number])
            for name in ("input_ids", "labels", "attention_mask", "position_ids")
        )
        real = real.astype(bool)
        where = np.flatnonzero(real)
        starts = np.flatnonzero(positions[where] == 0)
        pieces = np.split(where, starts[1:]) if len(where) else []
        told = [None if samples is None else int(samples[number, each[0]]) for each in pieces]
        parts = zip(pieces, told, strict=True)
        yield Row(
            documents=tuple(Document(ids[each], labels[each], of) for each, of in parts),
            pads=int((~real).sum()),
            learned_pads=int((labels[~real] != IGNORE_INDEX).sum()),
        )
