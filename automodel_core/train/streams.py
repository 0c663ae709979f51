"""A stream as the loader's workers read it, and the first samples of it, for whoever looks before
the run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, TypeGuard

import attrs
import torch

from automodel_core.errors import ConfigPath, UserError
from automodel_core.protocols import Dataset, Portion, Sample, Stream
from automodel_core.train.stream_order import Read

# Samples that are looked at before a run, and portions after which none is expected any more.
LOOKED_AT, PORTIONS = 128, 64


def is_stream(dataset: Dataset | Stream) -> TypeGuard[Stream]:
    return hasattr(dataset, "portions")


@attrs.frozen(eq=False)
class Head:
    """The first samples of a stream, as a data set of their own.

    Attributes:
        samples: In the order of the stream.
        by_source: The source of each, if the stream is mixed.
        sources: The names of the sources.
        stream: What follows them.
    """

    samples: Sequence[Sample]
    by_source: Sequence[str]
    sources: Sequence[str]
    stream: Stream

    @classmethod
    def of(cls, stream: Stream, path: ConfigPath, few: int = LOOKED_AT) -> Head:
        """Read them.

        Raises:
            UserError: There are none, or none for so long that none is expected.
        """
        samples: list[Sample] = []
        by_source: list[str] = []
        counts: Counter[str] = Counter()
        first_bad = ""
        for portion in islice(stream.portions(0, 1), PORTIONS):
            samples += [portion.samples[index] for index in range(len(portion.lengths))]
            by_source += portion.sources
            counts.update(portion.counts)
            first_bad = first_bad or portion.first_bad
            if len(samples) >= few:
                break
        if not samples:
            told = " ".join(notes(counts, first_bad))
            where = "at the beginning of the stream" if told else "in the stream"
            raise UserError(f"There is no sample {where}. {told}".rstrip(), path=path)
        return cls(samples[:few], by_source[:few], tuple(stream.sources), stream)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def source_of(self, index: int) -> str:
        return self.by_source[index]


def notes(counts: dict[str, int], first_bad: str) -> list[str]:
    """What was cut or left out, in lines to print."""
    lines = [f"{what}: {number:,}." for what, number in counts.items()]
    return [*lines, f"The first bad row: {first_bad}"] if first_bad else lines


class Portions(torch.utils.data.IterableDataset):
    """The portions of a stream with their numbers, dealt to the workers of a loader in turn.

    A loader asks its workers in turn too, so that the portions come in their order.
    """

    def __init__(self, stream: Stream, first: int) -> None:
        self.stream, self.first = stream, first

    def __iter__(self) -> Iterator[tuple[int, Portion | UserError]]:
        """A UserError comes as what it is; raised in a worker, it would be a traceback."""
        worker = torch.utils.data.get_worker_info()
        mine, step = (worker.id, worker.num_workers) if worker else (0, 1)
        numbers = count(self.first + mine, step)
        try:
            yield from zip(numbers, self.stream.portions(self.first + mine, step), strict=False)
        except UserError as error:
            yield -1, error


def reading(make: Callable[..., Any], stream: Stream, seed: int) -> Read:
    """The stream, as a loader reads it.

    Args:
        make: The loader's class, with the YAML's arguments.
        stream: What is read.
        seed: The run's. Workers draw their seeds from a generator of the loader's own.
    """

    def read(first: int) -> Iterator[tuple[int, Portion]]:
        loader = make(
            Portions(stream, first),
            batch_size=None,
            collate_fn=as_it_is,
            generator=torch.Generator().manual_seed(seed),
        )
        with one_core_a_worker():
            arriving = iter(loader)
        for expected, (number, portion) in zip(count(first), arriving, strict=False):
            if isinstance(portion, UserError):
                raise portion
            if number != expected:
                raise UserError(
                    "The loader gives a stream in another order than it reads it.",
                    fix="leave in_order out",
                    path=("dataloader",),
                )
            yield number, portion

    return read


def as_it_is(portion: Any) -> Any:
    return portion


@contextmanager
def one_core_a_worker() -> Iterator[None]:
    """Processes that are started meanwhile tokenise in one thread each. The library does so by
    itself in forked processes, but warns."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
