"""From what a data set's author yields to its samples: bad rows, lengths, and what to report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import attrs
import numpy as np

from automodel_core.errors import UserError
from automodel_core.protocols import Sample
from automodel_datasets.masking import SupervisedText, TokenisedText, require_offsets, tokenise
from automodel_datasets.options import Options
from automodel_datasets.rows import Row

T = TypeVar("T")

# Rows that the tokenizer gets at once; it works on them with all cores.
CHUNK = 1000


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

    def __init__(self, samples: Sequence[TokenisedText], notes: Sequence[str]) -> None:
        self.samples, self.notes = samples, notes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index].sample()

    @property
    def lengths(self) -> Sequence[int] | np.ndarray:
        """Tokens in each sample."""
        known = getattr(self.samples, "lengths", None)
        return [len(each) for each in self.samples] if known is None else known


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

    def notes(self) -> list[str]:
        if self.first is None:
            return []
        return [f"Bad rows skipped: {self.count}. The first: {self.first.message}"]


def build_dataset(
    items: Iterable[Any],
    write: Callable[[Any], SupervisedText | TokenisedText],
    options: Options,
    divisible: bool,
) -> TokenisedDataset:
    """Write, tokenise and measure what an author yields.

    Args:
        items: Each may be in a Placed; a UserError stands for a row that can't be read.
        write: Checks an item and says what of it is learned.
        options: Of this data set.
        divisible: Whether a sample that exceeds the limit and is learned whole goes on in the next
            one; any other is left out.

    Raises:
        UserError: A row can't be used and isn't to be skipped, or none is left.
    """
    bad, dropped = BadRows(options.on_bad_row == "skip"), Counter()
    samples, too_long, unlearned = [], 0, 0
    for chunk in chunks(written(items, write, bad)):
        for text in chunk:
            dropped.update(getattr(text, "dropped", {}))
        for whole in tokenised(chunk, options):
            if not any(start < stop for start, stop in whole.spans):
                unlearned += 1
                continue
            fitting = pieces(whole, options.limit, divisible)
            too_long += not fitting
            samples += fitting
    counts = {
        f"Rows left out because they exceed max_length, {options.limit} tokens": too_long,
        "Rows left out because nothing of them is to be learned": unlearned,
    } | {f"Not learned because of the chat template: {what}": n for what, n in dropped.items()}
    notes = [*bad.notes(), *(f"{what}: {n}." for what, n in counts.items() if n)]
    if notes and not samples:
        raise UserError(
            f"No sample is left. {' '.join(notes)}", fix=bad.first.fix if bad.first else ""
        )
    return TokenisedDataset(samples, notes)


def written(items: Iterable[Any], write: Callable[[Any], T], bad: BadRows) -> Iterator[T]:
    """Each item as `write` gives it; an error tells the item's place."""
    for number, item in enumerate(items, start=1):
        if isinstance(item, UserError):
            bad.add(item)
            continue
        placed = item if isinstance(item, Placed) else Placed(item, f"item {number}")
        try:
            text = write(placed.item)
        except UserError as error:
            bad.add(UserError(f"{placed.place}: {error.message}", fix=error.fix))
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
    if isinstance(texts[0], TokenisedText):
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


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
