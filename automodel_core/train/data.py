"""From a dataset to the micro-batches of optimizer steps. The engine owns the order: the loader is
given batches of indices, and the cursor moves only when an optimizer step is done."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import torch

from automodel_core.config.schema import DataLoader
from automodel_core.protocols import Collator, Dataset
from automodel_core.targets import Targets
from automodel_core.train.order import Cursor, GlobalBatchSampler


def build_loader(
    targets: Targets, section: DataLoader, dataset: Dataset, sampler: Any, supplied: dict[str, Any]
) -> Any:
    """The YAML's loader over batches of indices.

    It draws its workers' seeds from a generator of its own, so that how often it is restarted never
    shows in the random state that training consumes.
    """
    collate: Collator = targets.bind(section.collate_fn, supplied)
    make = targets.bind(section.loader, supplied)
    generator = torch.Generator().manual_seed(supplied["seed"])
    return make(dataset, batch_sampler=sampler, collate_fn=collate, generator=generator)


@attrs.define
class TrainingData:
    """The micro-batches of one optimizer step after another, round the data for ever.

    Attributes:
        sampler: Deals this rank its part of the global order, from a cursor to the epoch's end.
        make_loader: A loader over a sampler.
        cursor: Where the next optimizer step begins.
    """

    sampler: GlobalBatchSampler
    make_loader: partial[Any]
    cursor: Cursor
