"""How long the samples of a data set are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from automodel_core.progress import report
from automodel_core.protocols import Batch, Dataset

Collate = Callable[[Sequence[Any]], Batch]


def lengths_of(dataset: Dataset, collate: Collate) -> np.ndarray:
    """Tokens in each sample: the data set's own `lengths`, or counted.

    Args:
        dataset: The samples.
        collate: Makes tokens of samples that are none yet, those with images; each is made once for
            its length.
    """
    known = getattr(dataset, "lengths", None)
    if known is not None:
        return np.asarray(known)
    every = range(len(dataset))
    if "input_ids" in dataset[0]:
        counts = (len(dataset[i]["input_ids"]) for i in every)
    else:
        counts = (counted(dataset, i, collate) for i in every)
    return np.fromiter(counts, np.int64, len(dataset))


def counted(dataset: Dataset, index: int, collate: Collate) -> int:
    """Tokens that a collator makes of one sample."""
    tokens = int(collate([dataset[index]])["attention_mask"].sum())
    report(f"tokens of {index + 1:,} samples counted", (index + 1) / len(dataset))
    return tokens
