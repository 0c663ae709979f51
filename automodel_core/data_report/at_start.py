"""What a run says of its data before it trains, by a look at a few samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from automodel_core.config.schema import RunConfig
from automodel_core.data_report.documents import rows_of
from automodel_core.data_report.health import Health, examine
from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Dataset, ModelSource
from automodel_core.targets import Targets
from automodel_core.train.console import Console
from automodel_core.train.data import as_dealt
from automodel_core.train.samples import Sources
from automodel_core.train.streams import Head

# Samples that are looked at; of those that hold images, which are decoded for it, fewer.
PROBES, PROBES_OF_IMAGES = 128, 8


def check_data(
    config: RunConfig,
    targets: Targets,
    source: ModelSource,
    supplied: dict,
    dataset: Dataset | Head,
    console: Console,
) -> Health:
    """Warn of faults in the training data.

    Returns:
        What the samples that were looked at show.

    Raises:
        UserError: Nothing of it is learned, and `guards.no_supervised_tokens` isn't off.
    """
    collate = targets.bind(config.dataloader.collate_fn, supplied)
    few = PROBES if "input_ids" in dataset[0] else PROBES_OF_IMAGES
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), few)).astype(int).tolist()
    batch = as_dealt(collate([dataset[index] for index in chosen]), dataset, chosen)
    limit = config.dataset.arguments.get("max_length")
    rows = list(rows_of(batch))
    known = source.config.get_text_config().vocab_size
    health = examine(rows, supplied["tokenizer"], known, Sources.of(dataset), limit)
    if not health.supervised and config.guards.no_supervised_tokens == "stop":
        refuse_unsupervised(dataset, config.dataset.path)
    for fault in health.faults:
        examined = f"{fault.count:,} {fault.of}" if fault.documents else f"{fault.count:,}"
        console.say(
            f"dataset: {fault.name} ({examined}, of {health.documents:,} samples examined): "
            f"{fault.message}"
        )
    if health.faults:
        console.say("`automodel data show` prints the samples as the model will see them.")
    return health


def refuse_unsupervised(dataset: Dataset, path: Sequence[str | int]) -> None:
    """Look through all samples, of a stream the first ones, for one with something to learn.

    Raises:
        UserError: There is none.
    """
    what = f"the first {len(dataset)} samples" if isinstance(dataset, Head) else "this data"
    for index in range(len(dataset)):
        labels = dataset[index].get("labels")
        if labels is None or any(label != IGNORE_INDEX for label in labels[1:]):
            return
    raise UserError(
        f"Nothing of {what} is learned: every label is masked.",
        fix="see what is there with `automodel data show`",
        path=tuple(path),
    )
