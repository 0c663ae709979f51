"""How long the samples of a data set are."""

from __future__ import annotations

import numpy as np

from automodel_core.errors import UserError
from automodel_core.protocols import Dataset


def lengths_of(dataset: Dataset) -> np.ndarray:
    """Tokens in each sample: the data set's own `lengths`, or counted.

    Raises:
        UserError: Samples are no tokens yet.
    """
    if "input_ids" not in dataset[0]:
        raise UserError(
            "Samples that the collator turns into tokens, such as those with images, have no "
            "lengths to go by.",
            fix="leave packed_sequence and group_by_length out",
        )
    known = getattr(dataset, "lengths", None)
    if known is not None:
        return np.asarray(known)
    every = range(len(dataset))
    return np.fromiter((len(dataset[i]["input_ids"]) for i in every), np.int64, len(dataset))
