"""From a dataset to the micro-batches of optimizer steps. The engine owns the order: the loader is
given batches of indices, and the cursor moves only when an optimizer step is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import attrs
import numpy as np
import torch

from automodel_core.config.schema import DataLoader, RunConfig, StepScheduler
from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Batch, Dataset
from automodel_core.targets import Targets
from automodel_core.train.fingerprint import fingerprint
from automodel_core.train.lengths import lengths_of
from automodel_core.train.order import (
    Cursor,
    EpochBatches,
    Layout,
    Order,
    deal,
    epoch_order,
    grouped_by_length,
)
from automodel_core.train.packed_documents import OfRows
from automodel_core.train.packing import PackedDataset
from automodel_core.train.samples import Sources, members
from automodel_core.train.world import World

# A loader over micro-batches of indices.
MakeLoader = Callable[[EpochBatches], Any]

# What a rank without a sample is given.
FILLING = [0]


def loader_maker(
    targets: Targets, section: DataLoader, dataset: Dataset, supplied: dict[str, Any]
) -> MakeLoader:
    """The YAML's loader, ready for one epoch after another.

    Worker seeds come from a generator of the loader's own, so that how often it is restarted never
    shows in the random state that training consumes.
    """
    collate = OfRows(targets.bind(section.collate_fn, supplied))
    make = targets.bind(section.loader, supplied)

    def loader(batches: EpochBatches) -> Any:
        generator = torch.Generator().manual_seed(supplied["seed"])
        sampler = Filled(batches)
        return make(dataset, batch_sampler=sampler, collate_fn=collate, generator=generator)

    return loader


@attrs.frozen
class Filled:
    """Micro-batches for a loader, none of them empty.

    Where a step has fewer samples than ranks, some rank has none. It is given one all the same,
    whose labels `as_dealt` masks: every rank must make the same passes.
    """

    batches: EpochBatches

    def __iter__(self) -> Iterator[list[int]]:
        return (indices or FILLING for indices in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def as_dealt(batch: Batch, dataset: Dataset, indices: Sequence[int]) -> Batch:
    """A collated batch with the numbers of its samples; one that only fills up is not learned.

    Args:
        batch: As collated.
        dataset: What `indices` count in.
        indices: What this rank was dealt for it; none if it fills up.
    """
    return with_numbers(batch, members(dataset, indices or FILLING), filled=not indices)


def with_numbers(batch: Batch, numbers: Sequence[int], *, filled: bool) -> Batch:
    """A collated batch with the numbers of its samples.

    Args:
        batch: As collated.
        numbers: Of its samples, in their order.
        filled: Whether it only fills up.
    """
    numbered = batch | {"sample_id": torch.tensor(numbers)}
    if not filled:
        return numbered
    return numbered | {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def plan_layout(
    scheduler: StepScheduler, micro_batch: int, ranks: int = 1, rank: int = 0
) -> Layout:
    """How a step's samples are spread: by grad_acc_steps, or so that global_batch_size is kept.

    Raises:
        UserError: The three numbers don't fit together; the arithmetic is shown.
    """
    wanted, accumulation = scheduler.global_batch_size, scheduler.grad_acc_steps
    if wanted is None:
        return Layout(micro_batch, accumulation or 1, ranks, rank)
    per_round = micro_batch * ranks
    if wanted % per_round or accumulation not in (None, wanted // per_round):
        times = f" x {accumulation} grad_acc_steps" if accumulation else ""
        raise UserError(
            f"global_batch_size is {wanted}, but batch_size {micro_batch} x {ranks} rank(s){times} "
            f"makes {per_round * (accumulation or 1)}.",
            fix=f"write a multiple of {per_round}, and leave grad_acc_steps out",
            path=("step_scheduler", "global_batch_size"),
        )
    return Layout(micro_batch, wanted // per_round, ranks, rank)


@attrs.frozen
class StepData:
    """The data of one optimizer step.

    Attributes:
        epoch: 0 is the first.
        samples: The numbers of its samples, over all ranks.
        batches: This rank's micro-batches, each with its own samples' numbers.
        filled: Which of them only keep the other ranks company.
        sources: Those of its samples.
        learned_by_source: Supervised tokens of this rank by source, for data that is mixed.
    """

    epoch: int
    samples: list[int]
    batches: list[Batch]
    filled: list[bool]
    sources: Sources
    learned_by_source: dict[str, int]


@attrs.define(slots=False)
class TrainingData:
    """The micro-batches of one optimizer step after another, round the data for as long as asked.

    Attributes:
        dataset: What is trained on.
        layout: How a step's samples are spread over micro-batches and ranks.
        lengths: Tokens in each sample, if those of like lengths are to stand together.
        cursor: Where the next optimizer step begins.
    """

    dataset: Dataset
    make_loader: MakeLoader
    layout: Layout
    seed: int
    shuffle: bool
    lengths: np.ndarray | None = None
    cursor: Cursor = attrs.field(factory=Cursor)
    _order: Order = ()
    _batches: Iterator[Batch] | None = None

    @classmethod
    def build(
        cls,
        config: RunConfig,
        targets: Targets,
        dataset: Dataset,
        supplied: dict[str, Any],
        world: World,
    ) -> TrainingData:
        """From the `dataloader` and `step_scheduler` sections."""
        section, scheduler = config.dataloader, config.step_scheduler
        if section.shuffle_window is not None:
            raise UserError(
                "shuffle_window is for streams; of this data set all samples are mixed.",
                fix="leave it out",
                path=("dataloader", "shuffle_window"),
            )
        if section.group_by_length and not section.shuffle:
            raise UserError(
                "group_by_length changes the order of the samples, and shuffle is off.",
                fix="write shuffle: true, or leave group_by_length out",
                path=("dataloader", "group_by_length"),
            )
        lengths = None
        if section.group_by_length:
            lengths = lengths_of(dataset, targets.bind(section.collate_fn, supplied))
        return cls(
            dataset=dataset,
            make_loader=loader_maker(targets, section, dataset, supplied),
            layout=plan_layout(scheduler, section.batch_size, world.data_ranks, world.data_rank),
            seed=config.rng.seed,
            shuffle=section.shuffle,
            lengths=lengths,
        )

    @cached_property
    def fingerprint(self) -> str:
        """What tells this data set from another one."""
        return fingerprint(self.dataset)

    @property
    def steps_per_epoch(self) -> int:
        return self.layout.steps(len(self.dataset))

    @property
    def unit(self) -> str:
        return "rows" if isinstance(self.dataset, PackedDataset) else "samples"

    @property
    def amount(self) -> str:
        """How much there is, in words."""
        return f"{len(self.dataset):,} {self.unit}"

    @property
    def ended(self) -> bool:
        """Never: a run ends by its number of steps, which is known."""
        return False

    @property
    def notes(self) -> list[str]:
        """None at the end of a run: what was left out has been told at its start."""
        return []

    def next_step(self) -> StepData:
        """The optimizer step that begins at the cursor."""
        if self._batches is None:
            self._order = self._epoch()
            rest = EpochBatches(self._order, self.cursor.samples, self.layout)
            self._batches = iter(self.make_loader(rest))
        start = self.cursor.samples
        group = self._order[start : start + self.layout.group]
        mine = deal(group, self.layout)
        loaded = zip(islice(self._batches, len(mine)), mine, strict=True)
        batches = [as_dealt(batch, self.dataset, own) for batch, own in loaded]
        return StepData(
            epoch=self.cursor.epoch,
            samples=members(self.dataset, group),
            batches=batches,
            filled=[not own for own in mine],
            sources=self.sources,
            learned_by_source=self.sources.learned(batches),
        )

    @cached_property
    def sources(self) -> Sources:
        return Sources.of(self.dataset)

    def under_way(self) -> list[int]:
        """The numbers of this rank's samples in the step at the cursor; none before the first."""
        group = self._order[self.cursor.samples : self.cursor.samples + self.layout.group]
        mine = deal(group, self.layout) if len(group) else []
        return members(self.dataset, [index for own in mine for index in own])

    def _epoch(self) -> Order:
        """The order of the epoch that the cursor is in."""
        epoch = self.cursor.epoch
        order = epoch_order(len(self.dataset), self.seed, epoch, shuffle=self.shuffle)
        if self.lengths is None:
            return order
        return grouped_by_length(order, self.lengths, self.seed, epoch)

    def advance(self) -> None:
        """An optimizer step is done: the cursor moves past its samples."""
        taken = min(self.layout.group, len(self.dataset) - self.cursor.samples)
        self.cursor = self.cursor.advanced(taken, len(self.dataset))
        if self.cursor.samples == 0:
            self._batches = None

    def state_dict(self) -> dict[str, Any]:
        return attrs.asdict(self.cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cursor, self._batches = Cursor(**state), None


@attrs.frozen
class ValidationData:
    """The micro-batches of a whole validation set, in the order of the data."""

    dataset: Dataset
    make_loader: MakeLoader
    layout: Layout

    @property
    def amount(self) -> str:
        """How much there is, in words."""
        return f"{len(self.dataset):,}"

    @classmethod
    def build(
        cls,
        config: RunConfig,
        targets: Targets,
        dataset: Dataset,
        supplied: dict[str, Any],
        world: World,
    ) -> ValidationData:
        """From the `validation_dataloader` section, else from `dataloader`."""
        section = config.validation_dataloader or config.dataloader
        make = loader_maker(targets, section, dataset, supplied)
        layout = Layout(section.batch_size, 1, world.data_ranks, world.data_rank)
        return cls(dataset, make, layout)

    def batches(self) -> Iterator[Batch]:
        """This rank's share; as many as every other rank has."""
        mine = EpochBatches(range(len(self.dataset)), 0, self.layout)
        for batch, own in zip(self.make_loader(mine), mine, strict=True):
            yield as_dealt(batch, self.dataset, own)
