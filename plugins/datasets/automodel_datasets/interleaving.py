"""Which of several sources stands at each place, so that each has its share everywhere."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np


def interleaved(counts: Sequence[int]) -> np.ndarray:
    """All of `interleaving`: source numbers, `[sum of counts]`."""
    return np.fromiter(interleaving(counts), np.int16, sum(counts))


def interleaving(counts: Sequence[int]) -> Iterator[int]:
    """Which source stands at each place, so that each is spread evenly over all places.

    The k-th of n samples of a source is due by place (k + 1) / n of the whole, and may not come
    before k / n of it; of those that may, the one that is due first is taken: earliest deadline
    first, which keeps every source within one sample of its share (Steiner and Yeomans 1993).

    Args:
        counts: Samples of each source.

    Yields:
        Source numbers.
    """
    total = sum(counts)
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
        yield source
        if taken + 1 < counts[source]:
            released = (taken + 1) * total // counts[source]
            heapq.heappush(waiting, (released, source, taken + 1))


def place_in_source(order: np.ndarray, sources: int) -> np.ndarray:
    """For each place, how many samples of its source stand before it."""
    places = np.empty(len(order), dtype=np.int64)
    for source in range(sources):
        where = np.flatnonzero(order == source)
        places[where] = np.arange(len(where))
    return places


def apportioned(samples: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in these proportions with this sum, by largest remainders."""
    whole = sum(map(Fraction, shares))
    exact = [samples * Fraction(share) / whole for share in shares]
    counts = [int(each) for each in exact]
    rest = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for source in rest[: samples - sum(counts)]:
        counts[source] += 1
    return counts
