"""Data sets whose rows are read, written and tokenised as a run asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from automodel_core.protocols import Portion
from automodel_datasets.building import Prepared, Preparing, TokenisedDataset, in_places
from automodel_datasets.options import Options
from automodel_datasets.stored import Texts

T = TypeVar("T")

# Rows that are prepared at once. Fewer would wait less for the first, and cost more to hand over.
ROWS = 64


class TokenStream:
    """The samples of what an author yields, in its order; a Stream of the core's protocols.

    The author is called anew for every pass, and must yield the same each time. What he has yielded
    is forgotten once it is prepared.

    Args:
        target: What made this stream, which makes it again in another process.
        given: Its arguments.
        author: The function that yields the items.
        arguments: What it is called with.
        start: From the options to who prepares some of them.
        options: Of this data set.

    Raises:
        UserError: The tokenizer can't be used.
    """

    sources: Sequence[str] = ()

    def __init__(
        self,
        target: Callable[..., TokenStream],
        given: Mapping[str, Any],
        author: Callable[..., Iterable[Any]],
        arguments: Mapping[str, Any],
        start: Callable[[Any], Preparing],
        options: Options,
    ) -> None:
        self.target, self.given = target, given
        self.author, self.arguments = author, arguments
        self.prepare = start(options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.target, self.given)

    def items(self) -> Iterator[Any]:
        """What the author yields, each with its place, or an error in its stead."""
        return in_places(self.author(**self.arguments))

    def portions(self, first: int, step: int) -> Iterator[Portion]:
        """Rows that aren't wanted are read, and no more."""
        for items in every(self.items(), first, step):
            yield portion(self.prepare(items))


def _again(target: Callable[..., TokenStream], given: Mapping[str, Any]) -> TokenStream:
    return target(**given)


def every(items: Iterator[T], first: int, step: int) -> Iterator[list[T]]:
    """Items in lists of ROWS: the lists number `first`, `first + step`, ..., from 0."""
    skipped = first
    while skip(items, skipped * ROWS):
        taken = list(islice(items, ROWS))
        if not taken:
            return
        yield taken
        skipped = step - 1


def skip(items: Iterator[Any], count: int) -> bool:
    """Pass over so many; whether there were as many."""
    return sum(1 for _ in islice(items, count)) == count


def portion(done: Prepared, sources: Sequence[str] = ()) -> Portion:
    """What the engine is given of some rows that are prepared."""
    counts = {what: count for what, count in done.counts.items() if count}
    first_bad = ""
    if done.bad.first is not None:
        counts = {"Bad rows skipped": done.bad.count, **counts}
        first_bad = done.bad.first.message
    samples = TokenisedDataset(Texts(done.samples), ())
    return Portion(samples, samples.lengths.tolist(), counts, first_bad, sources)
