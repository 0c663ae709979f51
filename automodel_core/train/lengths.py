"""How long the samples of a data set are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from automodel_core.errors import UserError
from automodel_core.protocols import Batch, Dataset

Collate = Callable[[Sequence[Any]], Batch]


def lengths_of(dataset: Dataset, collate: Collate | None = None) -> np.ndarray:
    """Tokens in each sample: the data set's own `lengths`, or counted.

    Args:
        dataset: The samples.
        collate: Makes tokens of samples that are none yet, those with images; each is made once for
            its length.

    Raises:
        UserError: Samples are no tokens yet, and there is nothing to make them.
    """
    every = range(len(dataset))
    if "input_ids" not in dataset[0]:
        if collate is None:
            raise UserError(
                "Samples that the collator turns into tokens, such as those with images, can't be "
                "packed.",
                fix="leave packed_sequence out; dataloader.group_by_length saves padding as well",
            )
        counted = (int(collate([dataset[i]])["attention_mask"].sum()) for i in every)
        return np.fromiter(counted, np.int64, len(dataset))
    known = getattr(dataset, "lengths", None)
    if known is not None:
        return np.asarray(known)
    return np.fromiter((len(dataset[i]["input_ids"]) for i in every), np.int64, len(dataset))
