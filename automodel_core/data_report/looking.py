"""The rows that a run would be given, of each of its data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
from transformers import PreTrainedTokenizerBase

from automodel_core.config.schema import RunConfig, Target
from automodel_core.data_report.documents import Row, rows_of
from automodel_core.data_report.health import Health, examine
from automodel_core.protocols import Batch
from automodel_core.targets import Targets
from automodel_core.train.console import Console
from automodel_core.train.data import TrainingData
from automodel_core.train.packing import PackedDataset
from automodel_core.train.prepare import (
    build_dataset,
    open_source,
    packed,
    training_data,
    validation_data,
    validation_targets,
)
from automodel_core.train.samples import Numbered, Sources
from automodel_core.train.stream_data import StreamData
from automodel_core.train.streams import Head
from automodel_core.train.world import World


@attrs.frozen(eq=False)
class Looked:
    """One data set of a configuration.

    Attributes:
        name: The key of its section, such as `dataset` or `validation_dataset.easy`.
        samples: How many it has; None for a stream.
        notes: What it says of itself.
        rows: Those that were examined, in the order of training.
        health: What they show.
    """

    name: str
    samples: int | None
    notes: tuple[str, ...]
    rows: list[Row]
    health: Health


def look(
    config: RunConfig, targets: Targets, examined: int | None
) -> tuple[PreTrainedTokenizerBase, list[Looked]]:
    """Build the data of a configuration as one process would, and examine it.

    Args:
        config: A checked configuration.
        targets: Builds what it names.
        examined: Samples of each set to look at; None for all of an epoch.

    Returns:
        The run's tokenizer, and the training set and the validation sets.
    """
    source, tokenizer, supplied = open_source(config, targets)
    console, world = Console(-1), World()
    known = source.config.get_text_config().vocab_size
    looked = []
    for name, target in sections(config).items():
        dataset = build_dataset(targets, console, target, supplied)
        streamed = isinstance(dataset, Head)
        samples = None if streamed else len(dataset)
        notes = [*getattr(dataset, "notes", ())]
        dataset = packed(config, targets, console, dataset, supplied)
        if isinstance(dataset, PackedDataset):
            notes += dataset.notes
        if name == "dataset":
            data = training_data(config, targets, dataset, supplied, world, console)
            by_number: dict[int, str] = {}
            rows = first_rows(one_epoch(data, by_number), examined)
            sources = Sources(Sources.of(dataset).names, Numbered(by_number))
            notes += data.notes
        else:
            held_out = validation_data(config, targets, dataset, supplied, world, console)
            rows = first_rows(held_out.batches(), examined)
            sources = Sources((), dataset) if streamed else Sources.of(dataset)
        limit = target.arguments.get("max_length")
        health = examine(rows, tokenizer, known, sources, limit)
        looked.append(Looked(name, samples, tuple(notes), rows, health))
    return tokenizer, looked


def sections(config: RunConfig) -> dict[str, Target]:
    """The data sets of a run, by the key of their section."""
    validation = {
        f"validation_dataset.{name}" if name else "validation_dataset": target
        for name, target in validation_targets(config).items()
    }
    return {"dataset": config.dataset, **validation}


def one_epoch(data: TrainingData | StreamData, by_number: dict[int, str]) -> Iterator[Batch]:
    """The micro-batches of the first epoch, in the order of training.

    Args:
        data: At its beginning.
        by_number: Gets the sources of the samples, of data that is mixed.
    """
    while data.cursor.epoch == 0:
        step = data.next_step()
        if step.sources.names:
            by_number |= {number: step.sources.of_sample(number) for number in step.samples}
        yield from step.batches
        data.advance()


def first_rows(batches: Iterable[Batch], documents: int | None) -> list[Row]:
    """Whole rows with at least so many documents, if there are as many."""
    rows: list[Row] = []
    count = 0
    for batch in batches:
        for row in rows_of(batch):
            rows.append(row)
            count += len(row.documents)
            if documents is not None and count >= documents:
                return rows
    return rows
