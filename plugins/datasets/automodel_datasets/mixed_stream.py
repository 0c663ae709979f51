"""Several streams as one, in proportions that the YAML names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from automodel_core.errors import UserError
from automodel_core.protocols import Portion
from automodel_datasets.building import BadRows, Prepared
from automodel_datasets.interleaving import apportioned, interleaved, interleaving
from automodel_datasets.stored import Arrays, Texts
from automodel_datasets.streaming import TokenStream, every, portion


class MixedStream:
    """Rows of several streams, evenly interleaved; a Stream of the core's protocols.

    Each source is gone through in its own order, from the beginning again where it ends. Shares are
    of rows: how many samples a row becomes is known only once it is tokenised.

    Args:
        streams: By name.
        weights: Each source's share of the rows, in any unit.
        rows: In a pass.
    """

    def __init__(
        self, streams: Mapping[str, TokenStream], weights: Mapping[str, float], rows: int
    ) -> None:
        self.streams, self.sources = dict(streams), tuple(streams)
        self.counts = apportioned(rows, [weights.get(name, 0) for name in self.sources])

    def portions(self, first: int, step: int) -> Iterator[Portion]:
        """See the core's Stream."""
        for rows in every(self._rows(), first, step):
            yield self._portion(rows)

    def _rows(self) -> Iterator[tuple[int, Any]]:
        """Each with the number of its source."""
        items = [round_and_round(name, stream) for name, stream in self.streams.items()]
        for source in interleaving(self.counts):
            yield source, next(items[source])

    def _portion(self, rows: Sequence[tuple[int, Any]]) -> Portion:
        done = [
            stream.prepare([item for source, item in rows if source == number])
            for number, stream in enumerate(self.streams.values())
        ]
        order = interleaved([len(each.samples.starts) - 1 for each in done]).tolist()
        waiting = [iter(Texts(each.samples)) for each in done]
        samples = Arrays.of([next(waiting[source]) for source in order])
        counts = {
            f"{name}: {what}": count
            for name, each in zip(self.sources, done, strict=True)
            for what, count in each.counts.items()
        }
        bad = BadRows(skip=True)
        for each in done:
            bad.add_all(each.bad)
        whole = Prepared(len(rows), samples, counts, bad)
        return portion(whole, [self.sources[source] for source in order])


def round_and_round(name: str, stream: TokenStream) -> Iterator[Any]:
    """What a stream's author yields, from the beginning again where it ends.

    Raises:
        UserError: There is nothing.
    """
    while True:
        item = None
        for item in stream.items():
            yield item
        if item is None:
            raise UserError(f"{name} has no rows.", argument="sources")
