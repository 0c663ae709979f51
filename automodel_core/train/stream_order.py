"""One pass over a stream: its samples numbered, shuffled within a window, and packed in rows.

Where a pass stands is told by a few numbers, and the rest is read again: what comes next depends on
the stream, the seed and the epoch alone, not on the ranks, the workers or the layout.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count, dropwhile, islice
from typing import Any

import attrs
import numpy as np

from automodel_core.errors import UserError
from automodel_core.protocols import Portion, Sample
from automodel_core.train.packing import FirstFit, packed_row

TOO_LONG = "Samples left out because they exceed a row"

# The portions of a stream with their numbers, from the given one on.
Read = Callable[[int], Iterator[tuple[int, Portion]]]


@attrs.frozen(eq=False)
class Arrived:
    """A portion that has been read.

    Attributes:
        number: Of the portion in its stream.
        first: The number of its first sample.
        portion: What it holds.
    """

    number: int
    first: int
    portion: Portion


@attrs.frozen(eq=False)
class Held:
    """A sample that has been read.

    Attributes:
        number: Of the sample in its pass.
        arrived: The portion that it came in.
    """

    number: int
    arrived: Arrived

    @property
    def index(self) -> int:
        return self.number - self.arrived.first

    @property
    def length(self) -> int:
        """Tokens."""
        return self.arrived.portion.lengths[self.index]

    @property
    def source(self) -> str | None:
        """Which it is of, in a stream that is mixed."""
        sources = self.arrived.portion.sources
        return sources[self.index] if sources else None

    def sample(self) -> Sample:
        return self.arrived.portion.samples[self.index]


# The samples that stand in a row of a batch: one, or several that are packed.
Row = Sequence[Held]


def as_sample(row: Row, *, packed: bool) -> Any:
    """A row as the collator takes it."""
    return packed_row([each.sample() for each in row]) if packed else row[0].sample()


@attrs.frozen
class Plan:
    """What the order of a stream depends on.

    Attributes:
        seed: The run's.
        window: Samples that are mixed with each other; 1 keeps the order of the stream.
        size: Tokens that a packed row holds; 0 if each sample is a row.
    """

    seed: int
    window: int = 1
    size: int = 0


@attrs.frozen(eq=False)
class Place:
    """How far a pass has been read, with the rows that aren't done.

    Attributes:
        taken: Samples that have been put into rows, or left out.
        waiting: Rows that are whole.
        open: Rows that others may still be packed into.
        block: The first sample of the window that is gone through.
        counts: What was cut or left out.
        counted: Portions that have been asked for it.
        first_bad: The first of the rows that couldn't be used.
    """

    taken: int
    waiting: Sequence[Row]
    open: Sequence[Row]
    block: Held | None
    counts: Mapping[str, int]
    counted: int
    first_bad: str

    def state_dict(self) -> dict[str, Any]:
        """Numbers alone, and from which portion on the stream is to be read again."""
        held = [each for row in chain(self.waiting, self.open) for each in row]
        held += [self.block] if self.block else []
        oldest = min((each.arrived for each in held), key=lambda each: each.number, default=None)
        return {
            "portion": oldest.number if oldest else 0,
            "first": oldest.first if oldest else 0,
            "taken": self.taken,
            "waiting": [[each.number for each in row] for row in self.waiting],
            "open": [[each.number for each in row] for row in self.open],
            "counts": dict(self.counts),
            "counted": self.counted,
            "first_bad": self.first_bad,
        }


@attrs.define(slots=False, eq=False)
class Pass:
    """Rows of one pass over a stream, from a place in it to its end.

    An exception may end a read anywhere, as a signal does. So what `state_dict` tells is the place
    at the last `advance`.

    Attributes:
        read: The stream.
        plan: How it is ordered.
        epoch: 0 is the first.
        state: What `state_dict` gave; none begins at the beginning.
        counts: What was cut or left out so far.
        first_bad: The first of the rows that couldn't be used.
    """

    read: Read
    plan: Plan
    epoch: int
    state: dict[str, Any] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(init=False)
    first_bad: str = attrs.field(init=False)
    _rows: Iterator[Row] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.counts = Counter(self.state.get("counts", {}))
        self.first_bad = self.state.get("first_bad", "")
        self.counted: int = self.state.get("counted", 0)  # portions
        self.taken: int = self.state.get("taken", 0)  # samples, in their new order
        self.waiting: deque[Row] = deque()
        self.open: deque[list[Held]] = deque()
        self.block: Held | None = None  # the first sample of the block that is gone through
        self._kept: dict[int, Held] = {}  # samples of the state's rows, until they stand there
        self._place: Place | None = None

    def upcoming(self, rows: int) -> list[Row]:
        """The next so many, fewer at the end; they stay the next ones until `advance`."""
        if self._rows is None:
            self._rows = self._in_rows()
        while len(self.waiting) < rows and (row := next(self._rows, None)) is not None:
            self.waiting.append(row)
        return list(islice(self.waiting, rows))

    def advance(self, rows: int) -> bool:
        """So many are done; whether there is another."""
        for _ in range(rows):
            self.waiting.popleft()
        more = bool(self.upcoming(1))
        self._place = Place(
            taken=self.taken,
            waiting=list(self.waiting),
            open=list(map(list, self.open)),
            block=self.block,
            counts=dict(self.counts),
            counted=self.counted,
            first_bad=self.first_bad,
        )
        return more

    def state_dict(self) -> dict[str, Any]:
        """Where this pass stood at the last `advance`."""
        return self.state if self._place is None else self._place.state_dict()

    def _in_rows(self) -> Iterator[Row]:
        ordered = self._ordered()
        # With the first of a block all samples up to its end are read: those of the state too.
        first = next(ordered, None)
        ordered = ordered if first is None else chain([first], ordered)
        self.waiting.extend(map(self._found, self.state.get("waiting", ())))
        self.open.extend(map(self._found, self.state.get("open", ())))
        self._kept = {}
        return self._packed(ordered) if self.plan.size else self._one_by_one(ordered)

    def _one_by_one(self, ordered: Iterator[Held]) -> Iterator[Row]:
        for held in ordered:
            self.taken += 1
            yield [held]

    def _packed(self, ordered: Iterator[Held]) -> Iterator[Row]:
        """Rows as `first_fit` makes them, each as soon as it is closed."""
        fit = FirstFit(self.plan.size)
        for row in self.open:
            fit.open(sum(max(each.length, 1) for each in row))
        for held in ordered:
            self.taken += 1
            if held.length > self.plan.size:
                self.counts[TOO_LONG] += 1
                continue
            closed = fit.rows - len(self.open)
            row = fit.place(held.length) - closed
            if row < len(self.open):
                self.open[row].append(held)
                continue
            self.open.append([held])
            if len(self.open) > fit.window:
                yield self.open.popleft()
        while self.open:
            yield self.open.popleft()

    def _ordered(self) -> Iterator[Held]:
        """From sample `taken` of the new order on."""
        window = self.plan.window
        begun = self.taken // window
        skip = self.taken - begun * window
        held = dropwhile(lambda each: each.number < begun * window, self._numbered())
        for number in count(begun):
            block = list(islice(held, window))
            if not block:
                return
            self.block = block[0]
            order = shuffled(len(block), self.plan.seed, self.epoch, number)
            yield from (block[place] for place in order[skip:])
            skip = 0

    def _numbered(self) -> Iterator[Held]:
        """The samples in the order of the stream, from the portion that the state names."""
        wanted = {
            number
            for rows in ("waiting", "open")
            for row in self.state.get(rows, ())
            for number in row
        }
        first = self.state.get("first", 0)
        for number, portion in self.read(self.state.get("portion", 0)):
            self._count(number, portion)
            arrived = Arrived(number, first, portion)
            for place in range(len(portion.lengths)):
                held = Held(first + place, arrived)
                if held.number in wanted:
                    self._kept[held.number] = held
                yield held
            first += len(portion.lengths)

    def _count(self, number: int, portion: Portion) -> None:
        """Remember what a portion tells, once: after a resume some are read again."""
        if number < self.counted:
            return
        self.counted = number + 1
        self.counts.update(portion.counts)
        self.first_bad = self.first_bad or portion.first_bad

    def _found(self, numbers: Sequence[int]) -> list[Held]:
        """A row of the state.

        Raises:
            UserError: The stream has become shorter.
        """
        if not all(number in self._kept for number in numbers):
            raise UserError(
                "The stream ends before the place that the checkpoint stood at: it is another.",
                fix="put the old data back, or pass --fresh to start a new run",
                path=("dataset",),
            )
        return [self._kept[number] for number in numbers]


def shuffled(length: int, seed: int, epoch: int, block: int) -> Sequence[int]:
    """The order of the samples of a block.

    Drawn as `epoch_order` draws, from a stream for each block. A block of one keeps its order.
    """
    if length == 1:
        return [0]
    drawn = np.random.Philox(key=[seed, epoch], counter=[0, 0, block, 2]).random_raw(length)
    return drawn.argsort(kind="stable").tolist()
