"""Several data sets as one, in proportions that the YAML names."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from automodel_core.errors import UserError
from automodel_core.protocols import Dataset, Sample


class Mixture:
    """Samples of several sources, evenly interleaved.

    Each source is gone through in its own order, from the beginning again where it ends. Which
    sample stands where depends on the numbers of samples alone. At every place, each source has had
    its share within one sample; `dataloader.shuffle` then shuffles the whole.

    Args:
        sources: Data sets by name.
        epochs: How often each source is gone through in one epoch of the mixture; 1 for those that
            aren't named, and 0.5 for half of its samples.
        weights: Each source's share of the samples, in any unit; with `samples`, instead of epochs.
        samples: How many samples an epoch of the mixture has; with `weights`.

    Raises:
        UserError: The numbers name no source, contradict each other or leave nothing.
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
            _check(numbers, self.names, argument)
        if not sources or (samples is not None and samples < 1):
            raise UserError(
                "A mixture needs sources and samples.",
                fix="name a source, and write samples: 1 or more",
                argument="sources" if not sources else "samples",
            )
        for name, source in sources.items():
            if not len(source):
                raise UserError(f"{name} has no samples.", argument="sources")
            if "input_ids" not in source[0]:
                raise UserError(f"{name} has samples with images, which can't be mixed yet.")
        counts = self._counts(epochs, weights, samples)
        self.order = interleaved(counts)
        self.places = _place_in_source(self.order, len(self.names))
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
            counts = _apportioned(samples, shares)
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


def interleaved(counts: Sequence[int]) -> np.ndarray:
    """Which source stands at each place, so that each is spread evenly over all places.

    The k-th of n samples of a source is due by place (k + 1) / n of the whole, and may not come
    before k / n of it; of those that may, the one that is due first is taken: earliest deadline
    first, which keeps every source within one sample of its share (Steiner and Yeomans 1993).

    Args:
        counts: Samples of each source.

    Returns:
        Source numbers, `[sum of counts]`.
    """
    total = sum(counts)
    order = np.empty(total, dtype=np.int16)
    waiting = [(0, source, 0) for source, count in enumerate(counts) if count]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    for place in range(total):
        while waiting and waiting[0][0] <= place:
            _, source, taken = heapq.heappop(waiting)
            # By its deadline: the last place at which it isn't late.
            due = ((taken + 1) * total - 1) // counts[source]
            heapq.heappush(ready, (due, source, taken))
        _, source, taken = heapq.heappop(ready)
        order[place] = source
        if taken + 1 < counts[source]:
            released = (taken + 1) * total // counts[source]
            heapq.heappush(waiting, (released, source, taken + 1))
    return order


def _place_in_source(order: np.ndarray, sources: int) -> np.ndarray:
    """For each place, how many samples of its source stand before it."""
    places = np.empty(len(order), dtype=np.int64)
    for source in range(sources):
        where = np.flatnonzero(order == source)
        places[where] = np.arange(len(where))
    return places


def _apportioned(samples: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in these proportions with this sum, by largest remainders."""
    whole = sum(map(Fraction, shares))
    exact = [samples * Fraction(share) / whole for share in shares]
    counts = [int(each) for each in exact]
    rest = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for source in rest[: samples - sum(counts)]:
        counts[source] += 1
    return counts


def _check(numbers: Mapping[str, float] | None, names: Sequence[str], argument: str) -> None:
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
