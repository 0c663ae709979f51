"""The data of optimizer steps from a stream: what `TrainingData` and `ValidationData` are for sets
whose samples have numbers.

Every rank reads all of the stream and takes its share of each step by position, so that ranks agree
on where an epoch ends and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import attrs

from automodel_core.config.schema import DataLoader, RunConfig
from automodel_core.errors import UserError
from automodel_core.protocols import Batch
from automodel_core.targets import Targets
from automodel_core.train.data import StepData, plan_layout, with_numbers
from automodel_core.train.fingerprint import fingerprint
from automodel_core.train.order import Cursor, Layout, deal
from automodel_core.train.samples import Numbered, Sources
from automodel_core.train.stream_order import Pass, Plan, Read, Row, as_sample
from automodel_core.train.streams import Head, notes, reading
from automodel_core.train.world import World

# Samples that are mixed with each other where the YAML says only `shuffle`.
WINDOW = 4096


@attrs.frozen
class Dealer:
    """Deals the rows of a group to ranks, and collates this one's.

    Attributes:
        collate: The YAML's.
        layout: How a group is spread.
        packed: Whether a row holds several samples.
    """

    collate: Callable[[Sequence[Any]], Batch]
    layout: Layout
    packed: bool

    def mine(self, group: Sequence[Row]) -> list[list[Row]]:
        """This rank's micro-batches; one is empty if it only keeps the other ranks company."""
        return [[group[i] for i in own] for own in deal(range(len(group)), self.layout)]

    def batch(self, group: Sequence[Row], own: Sequence[Row]) -> Batch:
        """One of them, collated. An empty one is given the group's first row, which isn't learned
        there."""
        rows = own or group[:1]
        batch = self.collate([as_sample(row, packed=self.packed) for row in rows])
        numbers = [held.number for row in rows for held in row]
        return with_numbers(batch, numbers, filled=not own)


def window_of(section: DataLoader) -> int:
    """Samples that are mixed with each other."""
    return (section.shuffle_window or WINDOW) if section.shuffle else 1


def read_and_dealt(
    config: RunConfig,
    targets: Targets,
    head: Head,
    supplied: dict[str, Any],
    section: DataLoader,
    layout: Layout,
) -> tuple[Read, Dealer]:
    """How a stream is read and spread, by the loader and the collator of a section."""
    read = reading(targets.bind(section.loader, supplied), head.stream, config.rng.seed)
    packed = config.packed_sequence.packed_sequence_size > 0
    return read, Dealer(targets.bind(section.collate_fn, supplied), layout, packed)


@attrs.define(slots=False)
class StreamData:
    """The micro-batches of one optimizer step after another, round the stream for as long as asked.

    Attributes:
        dataset: The first samples of the stream.
        dealer: Deals rows to ranks.
        plan: How the stream is ordered.
        epochs: Passes after which it has ended; None goes on for as long as asked.
        say: Told at the end of a pass what was left out of it.
        cursor: Where the next optimizer step begins.
    """

    dataset: Head
    read: Read
    dealer: Dealer
    plan: Plan
    epochs: int | None
    say: Callable[[str], None]
    cursor: Cursor = attrs.field(factory=Cursor)
    _walk: Pass | None = None
    _group: Sequence[Row] = ()

    @classmethod
    def build(
        cls,
        config: RunConfig,
        targets: Targets,
        head: Head,
        supplied: dict[str, Any],
        world: World,
        say: Callable[[str], None],
    ) -> StreamData:
        """From the `dataloader` and `step_scheduler` sections."""
        section, scheduler = config.dataloader, config.step_scheduler
        size = config.packed_sequence.packed_sequence_size
        layout = plan_layout(scheduler, section.batch_size, world.data_ranks, world.data_rank)
        endless = scheduler.max_steps is not None and scheduler.num_epochs is None
        read, dealer = read_and_dealt(config, targets, head, supplied, section, layout)
        return cls(
            dataset=head,
            read=read,
            dealer=dealer,
            plan=Plan(config.rng.seed, window_of(section), size),
            epochs=None if endless else scheduler.num_epochs or 1,
            say=say,
        )

    @property
    def layout(self) -> Layout:
        return self.dealer.layout

    @property
    def unit(self) -> str:
        return "rows" if self.plan.size else "samples"

    @property
    def amount(self) -> str:
        """How much there is, in words."""
        return f"a stream of {self.unit}"

    @property
    def steps_per_epoch(self) -> None:
        """Nobody knows."""

    @property
    def ended(self) -> bool:
        """Whether all passes are done."""
        return self.epochs is not None and self.cursor.epoch >= self.epochs

    @cached_property
    def fingerprint(self) -> str:
        """What tells the beginning of this stream from another's."""
        return fingerprint(self.dataset)

    def next_step(self) -> StepData:
        """The optimizer step that begins at the cursor.

        Raises:
            UserError: A row can't be used, or there is none in the whole stream.
        """
        # With the first row of the step after it: whoever reads it is waited for here.
        group = self._current.upcoming(self.layout.group + 1)[: self.layout.group]
        if not group:
            told = " ".join(notes(self._current.counts, self._current.first_bad))
            raise UserError(f"No sample of the stream is left. {told}".rstrip(), path=("dataset",))
        self._group = group
        mine, sources = self.dealer.mine(group), self.sources_of(group)
        batches = [self.dealer.batch(group, own) for own in mine]
        return StepData(
            epoch=self.cursor.epoch,
            samples=[held.number for row in group for held in row],
            batches=batches,
            filled=[not own for own in mine],
            sources=sources,
            learned_by_source=sources.learned(batches),
        )

    def sources_of(self, group: Sequence[Row]) -> Sources:
        """Those of the samples in some rows."""
        by_number = {held.number: held.source for row in group for held in row}
        return Sources(tuple(self.dataset.sources), Numbered(by_number))

    def under_way(self) -> list[int]:
        """The numbers of this rank's samples in the step at the cursor; none before the first."""
        group = self._group
        mine = self.dealer.mine(group) if group else []
        return [held.number for own in mine for row in own for held in row]

    def advance(self) -> None:
        """An optimizer step is done: the cursor moves past its rows, and into the next epoch if
        they were the last."""
        done = len(self._current.upcoming(self.layout.group))
        self._group = []
        if self._current.advance(done):
            self.cursor = Cursor(self.cursor.epoch, self.cursor.samples + done)
            return
        for note in self.notes:
            self.say(f"epoch {self.cursor.epoch}: {note}")
        self.cursor, self._walk = Cursor(self.cursor.epoch + 1), None

    @property
    def notes(self) -> list[str]:
        """What was cut or left out of the pass so far."""
        return [] if self._walk is None else notes(self._walk.counts, self._walk.first_bad)

    @property
    def _current(self) -> Pass:
        """The pass that the cursor is in."""
        if self._walk is None:
            self._walk = Pass(self.read, self.plan, self.cursor.epoch)
        return self._walk

    def state_dict(self) -> dict[str, Any]:
        place = {} if self._walk is None else self._walk.state_dict()
        return {**attrs.asdict(self.cursor), "stream": place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cursor = Cursor(state["epoch"], state["samples"])
        self._walk = Pass(self.read, self.plan, self.cursor.epoch, state["stream"])


@attrs.define
class StreamValidation:
    """The micro-batches of a whole stream, in its order.

    Attributes:
        dataset: The first samples of the stream.
        dealer: Deals rows to ranks.
        plan: How the stream is ordered.
        say: Told at the end of the first pass what was left out of it.
    """

    dataset: Head
    read: Read
    dealer: Dealer
    plan: Plan
    say: Callable[[str], None]
    _told: bool = False

    @classmethod
    def build(
        cls,
        config: RunConfig,
        targets: Targets,
        head: Head,
        supplied: dict[str, Any],
        world: World,
        say: Callable[[str], None],
    ) -> StreamValidation:
        """From the `validation_dataloader` section, else from `dataloader`."""
        section = config.validation_dataloader or config.dataloader
        size = config.packed_sequence.packed_sequence_size
        layout = Layout(section.batch_size, 1, world.data_ranks, world.data_rank)
        read, dealer = read_and_dealt(config, targets, head, supplied, section, layout)
        return cls(
            dataset=head,
            read=read,
            dealer=dealer,
            plan=Plan(config.rng.seed, size=size),
            say=say,
        )

    @property
    def amount(self) -> str:
        return "a stream"

    def batches(self) -> Iterator[Batch]:
        """This rank's share; as many as every other rank has."""
        run = Pass(self.read, self.plan, epoch=0)
        while group := run.upcoming(self.dealer.layout.group):
            yield from map(partial(self.dealer.batch, group), self.dealer.mine(group))
            run.advance(len(group))
        for note in () if self._told else notes(run.counts, run.first_bad):
            self.say(f"validation: {note}")
        self._told = True
