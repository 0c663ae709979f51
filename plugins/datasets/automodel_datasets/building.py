"""From what a data set's author yields to its samples: bad rows, lengths, and what to report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
import numpy as np

from automodel_core.errors import UserError
from automodel_core.progress import report
from automodel_core.protocols import Sample
from automodel_datasets.masking import SupervisedText, TokenisedText, require_offsets, tokenise
from automodel_datasets.options import Options
from automodel_datasets.reading import share_read
from automodel_datasets.rows import Row
from automodel_datasets.stored import Arrays, Texts
from automodel_datasets.workers import in_order

T = TypeVar("T")


@attrs.frozen
class Placed(Generic[T]):
    """What an author yields who knows where it came from, such as "data/train.jsonl:12"."""

    item: T
    place: str


class TokenisedDataset:
    """Tokenised samples in the order of their rows.

    Attributes:
        notes: What was cut or left out.
    """

    def __init__(self, samples: Texts, notes: Sequence[str]) -> None:
        self.samples, self.notes = samples, notes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index].sample()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each sample."""
        return self.samples.lengths


@attrs.define
class BadRows:
    """Refuses the first row that can't be used, or counts them all."""

    skip: bool
    count: int = 0
    first: UserError | None = None

    def add(self, error: UserError) -> None:
        if not self.skip:
            raise error
        self.count += 1
        self.first = self.first or error

    def add_all(self, others: BadRows) -> None:
        self.count += others.count
        self.first = self.first or others.first

    def notes(self) -> list[str]:
        if self.first is None:
            return []
        return [f"Bad rows skipped: {self.count}. The first: {self.first.message}"]


@attrs.define
class Prepared:
    """What became of some rows.

    Attributes:
        rows: How many they were.
        samples: In their order.
        counts: What else is to be told, and of how many rows.
        bad: Those that can't be used.
    """

    rows: int
    samples: Arrays
    counts: Mapping[str, int]
    bad: BadRows


# From items in their Places, and errors, to what becomes of them.
Preparing = Callable[[Sequence[Any]], Prepared]


def build(
    items: Iterable[Any],
    start: Callable[[Any], Preparing],
    options: Options,
    keep: Callable[[Arrays], None],
) -> list[str]:
    """Prepare what an author yields.

    Args:
        items: Each may be in a Placed; a UserError stands for a row that can't be read.
        start: From the options to who prepares some of them; pickled, if other processes help.
        options: Of this data set.
        keep: Gets the samples, some at a time.

    Returns:
        What was cut or left out.

    Raises:
        UserError: A row can't be used and isn't to be skipped, or none is left.
    """
    bad, counts, rows, samples = BadRows(options.on_bad_row == "skip"), Counter(), 0, 0
    for done in in_order(in_places(items), start, options):
        keep(done.samples)
        bad.add_all(done.bad)
        counts.update(done.counts)
        samples += len(done.samples.starts) - 1
        rows += done.rows
        report(f"{rows:,} rows tokenised", share_read())
    notes = [*bad.notes(), *(f"{what}: {n}." for what, n in counts.items() if n)]
    if notes and not samples:
        raise UserError(
            f"No sample is left. {' '.join(notes)}", fix=bad.first.fix if bad.first else ""
        )
    return notes


def in_places(items: Iterable[Any]) -> Iterator[Placed[Any] | UserError]:
    """Each item with where it came from."""
    for number, item in enumerate(items, start=1):
        known = isinstance(item, Placed | UserError)
        yield item if known else Placed(item, f"item {number}")


def preparing_texts(
    writer: Callable[[Any], Callable[[Any], SupervisedText | TokenisedText]],
    divisible: bool,
    options: Options,
) -> Preparing:
    """Writes, tokenises and measures.

    Args:
        writer: From the options to who checks an item and says what of it is learned.
        divisible: Whether a sample that exceeds the limit and is learned whole goes on in the next
            one; any other is left out.
        options: Of the data set.
    """
    write, limit = writer(options), options.limit
    long = f"Rows left out because they exceed max_length, {limit} tokens"
    unlearned = "Rows left out because nothing of them is to be learned"

    def prepare(items: Sequence[Any]) -> Prepared:
        bad, counts, samples = BadRows(options.on_bad_row == "skip"), Counter(), []
        counts.update({long: 0, unlearned: 0})
        texts = list(written(items, write, bad))
        for text in texts:
            dropped = getattr(text, "dropped", {}).items()
            counts.update({f"Not learned because of the chat template: {w}": n for w, n in dropped})
        for whole in tokenised(texts, options):
            if not any(start < stop for start, stop in whole.spans):
                counts[unlearned] += 1
                continue
            fitting = pieces(whole, limit, divisible)
            counts[long] += not fitting
            samples += fitting
        return Prepared(len(items), Arrays.of(samples), counts, bad)

    return prepare


def written(items: Iterable[Any], write: Callable[[Any], T], bad: BadRows) -> Iterator[T]:
    """Each item as `write` gives it; an error tells the item's place."""
    for item in items:
        if isinstance(item, UserError):
            bad.add(item)
            continue
        try:
            text = write(item.item)
        except UserError as error:
            bad.add(UserError(f"{item.place}: {error.message}", fix=error.fix))
            continue
        yield text


def placed(
    rows: Iterable[Row | UserError], convert: Callable[[Row], T]
) -> Iterator[Placed[T] | UserError]:
    """Rows as items of a data set; one that `convert` refuses, by a UserError, is a bad row."""
    for row in rows:
        if isinstance(row, UserError):
            yield row
            continue
        try:
            item = Placed(convert(row), row.place)
        except UserError as error:
            item = error
        yield item


def tokenised(
    texts: Sequence[SupervisedText | TokenisedText], options: Options
) -> Sequence[TokenisedText]:
    """All of one kind: tokens are taken as they are."""
    if not texts or isinstance(texts[0], TokenisedText):
        return texts
    require_offsets(options.tokenizer)
    return tokenise(options.tokenizer, texts)


def pieces(whole: TokenisedText, limit: int | None, divisible: bool) -> list[TokenisedText]:
    """The sample in parts of at most `limit` tokens; none if it is too long and can't be divided.

    Each part begins with the last token of the one before, not learned there: so every token is
    predicted from some token, exactly once.
    """
    if limit is None or len(whole) <= limit:
        return [whole]
    learned = sum(stop - start for start, stop in whole.spans)
    if not divisible or learned < len(whole) - 1:  # the first may be BOS
        return []
    starts = range(0, len(whole) - 1, limit - 1)
    cut = [whole.ids[start : start + limit] for start in starts]
    return [TokenisedText(ids, [(1, len(ids))]) for ids in cut]
