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
    identity = getattr(dataset, "identity", None)
    for index in sorted({int(i) for i in np.linspace(0, length - 1, min(length, PROBES))}):
        if identity is not None:
            digest.update(identity(index))
            continue
        sample = dataset[index]
        for name in ("input_ids", "labels"):
            digest.update(np.asarray(sample[name], dtype=np.int64).tobytes())
    return digest.hexdigest()
