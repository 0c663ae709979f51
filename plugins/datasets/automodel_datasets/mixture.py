"""Several data sets as one, in proportions that the YAML names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from automodel_core.errors import UserError
from automodel_core.protocols import Dataset, Sample
from automodel_datasets.interleaving import apportioned, interleaved, place_in_source
from automodel_datasets.mixed_stream import MixedStream
from automodel_datasets.streaming import TokenStream


def make_mixture(
    sources: dict[str, Any],
    epochs: dict[str, float] | None = None,
    weights: dict[str, float] | None = None,
    samples: int | None = None,
) -> Mixture | MixedStream:
    """Samples of several sources, evenly interleaved.

    Sources that are streamed need weights and samples, which count their rows then.

    Args:
        sources: Data sets by name; all of them streamed, or none.
        epochs: How often each source is gone through in one epoch of the mixture; 1 for those that
            aren't named, and 0.5 for half of its samples.
        weights: Each source's share of the samples, in any unit; with `samples`, instead of epochs.
        samples: How many samples an epoch of the mixture has; with `weights`.

    Raises:
        UserError: The numbers name no source, contradict each other or leave nothing.
    """
    for name, each in sources.items():
        if hasattr(each, "portions") and not isinstance(each, TokenStream):
            raise UserError(
                f"{name} is a stream without rows of its own, which can't be mixed.",
                fix="name the data sets that it is made of",
                argument="sources",
            )
    streams = {name: each for name, each in sources.items() if isinstance(each, TokenStream)}
    if not streams:
        return Mixture(sources, epochs, weights, samples)
    others = [name for name in sources if name not in streams]
    if others:
        raise UserError(
            f"{next(iter(streams))} is streamed and {others[0]} is not.",
            fix="write streaming: true in all sources, or in none",
            argument="sources",
        )
    if epochs is not None or weights is None or samples is None:
        raise UserError(
            "Nobody knows how long streams are, so they can't be mixed by epochs.",
            fix="write weights, and as samples the rows of an epoch",
            argument="epochs" if epochs is not None else None,
        )
    check_numbers(weights, tuple(sources), "weights")
    check_enough(sources, samples)
    return MixedStream(streams, weights, samples)


class Mixture:
    """Samples of several sources, evenly interleaved.

    Each source is gone through in its own order, from the beginning again where it ends. Which
    sample stands where depends on the numbers of samples alone. At every place, each source has had
    its share within one sample; `dataloader.shuffle` then shuffles the whole.

    Takes what `make_mixture` does, and refuses what it does.
    """

    def __init__(
        self,
        sources: dict[str, Any],
        epochs: dict[str, float] | None = None,
        weights: dict[str, float] | None = None,
        samples: int | None = None,
    ) -> None:
        self.sources: Mapping[str, Dataset] = sources
        self.names = tuple(sources)
        for argument, numbers in (("epochs", epochs), ("weights", weights)):
            check_numbers(numbers, self.names, argument)
        check_enough(sources, samples)
        for name, source in sources.items():
            if not len(source):
                raise UserError(f"{name} has no samples.", argument="sources")
            if "input_ids" not in source[0]:
                raise UserError(f"{name} has samples with images, which can't be mixed yet.")
        counts = self._counts(epochs, weights, samples)
        self.order = interleaved(counts)
        self.places = place_in_source(self.order, len(self.names))
        self.notes = [
            f"{name}: {note}"
            for name, each in sources.items()
            for note in getattr(each, "notes", ())
        ]
        self.notes += [
            f"{name}: {count:,} samples an epoch, {count / len(sources[name]):.2f} of its "
            f"{len(sources[name]):,}."
            for name, count in zip(self.names, counts, strict=True)
        ]

    def _counts(
        self,
        epochs: Mapping[str, float] | None,
        weights: Mapping[str, float] | None,
        samples: int | None,
    ) -> list[int]:
        """How many samples of each source an epoch has."""
        if (weights is None) != (samples is None) or (weights is not None and epochs is not None):
            raise UserError(
                "A mixture has either epochs, or weights and samples.",
                fix="write weights and samples, or epochs alone; with neither every source is gone "
                "through once",
                argument="weights" if weights is not None else "samples",
            )
        if weights is None:
            each = {name: (epochs or {}).get(name, 1) for name in self.names}
            counts = [round(each[name] * len(self.sources[name])) for name in self.names]
        else:
            shares = [weights.get(name, 0) for name in self.names]
            counts = apportioned(samples, shares)
        if not sum(counts):
            raise UserError("The mixture has no samples.", argument="samples")
        return counts

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample:
        source = self.sources[self.source_of(index)]
        return source[int(self.places[index]) % len(source)]

    def source_of(self, index: int) -> str:
        """The name of the source that a sample is of."""
        return self.names[self.order[index]]


def check_enough(sources: Mapping[str, Any], samples: int | None) -> None:
    """Raises UserError if nothing is to be mixed."""
    if not sources or (samples is not None and samples < 1):
        raise UserError(
            "A mixture needs sources and samples.",
            fix="name a source, and write samples: 1 or more",
            argument="sources" if not sources else "samples",
        )


def check_numbers(numbers: Mapping[str, float] | None, names: Sequence[str], argument: str) -> None:
    """Raises UserError if a number is of no source, or no share."""
    for name, number in (numbers or {}).items():
        if name not in names:
            raise UserError(
                f"{argument} names `{name}`, which is no source.",
                fix=f"the sources are {', '.join(names)}",
                argument=argument,
            )
        if not 0 <= number < math.inf:
            raise UserError(
                f"{argument} of {name} is {number}.", fix="write 0 or more", argument=argument
            )
    if numbers is not None and not any(numbers.values()) and argument == "weights":
        raise UserError("All weights are 0.", argument=argument)
