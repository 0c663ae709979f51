"""Whether a data set is the one that a checkpoint was trained on."""

from __future__ import annotations

import hashlib

import numpy as np

from automodel_core.protocols import Dataset

PROBES = 256


def fingerprint(dataset: Dataset) -> str:
    """A hash of a data set's length and of up to 256 samples spread evenly over it.

    Another tokenizer, template, file or order of rows changes it. Reading the whole of a large set
    at every start would cost more than the rare change that hides between the probes.
    """
    length = len(dataset)
    digest = hashlib.sha256(str(length).encode())
    for index in sorted({int(i) for i in np.linspace(0, length - 1, min(length, PROBES))}):
        digest.update(identity_of(dataset, index))
    return digest.hexdigest()


def identity_of(dataset: Dataset, index: int) -> bytes:
    """What tells a sample from others: by the data set's own `identity`, or its tokens."""
    identity = getattr(dataset, "identity", None)
    if identity is not None:
        return identity(index)
    sample = dataset[index]
    return b"".join(
        np.asarray(sample[name], dtype=np.int64).tobytes() for name in ("input_ids", "labels")
    )
