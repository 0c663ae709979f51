"""Which sample, and of which source, the tokens of a batch are.

Every batch carries `sample_id`, int64 `[samples]`: the numbers of its samples in the data set, in
the order in which they stand in its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Batch, Dataset
from automodel_core.train.packing import PackedDataset
from automodel_core.train.step import shift_labels


def members(dataset: Dataset, indices: Iterable[int]) -> list[int]:
    """The samples behind these indices of a data set; a packed row has several."""
    if not isinstance(dataset, PackedDataset):
        return [int(index) for index in indices]
    return [sample for index in indices for sample in dataset.members(int(index))]


def sample_of_tokens(batch: Batch) -> torch.Tensor | None:
    """The number of the sample that each token is of, `[batch, sequence]`; at pads any number.

    Samples are told apart where positions begin again, or else by their rows: samples may hold
    several documents. None if a collator gives neither as many documents nor as many rows.
    """
    ids, positions = batch["sample_id"], batch["position_ids"]
    begins = (positions == 0) & (batch["attention_mask"] != 0)
    if int(begins.sum()) == len(ids):
        return ids[(begins.flatten().cumsum(0) - 1).clamp(min=0)].view_as(positions)
    return ids[:, None].expand_as(positions) if len(ids) == len(positions) else None


@attrs.frozen
class Numbered:
    """Tells the sources of a few samples; see `Dataset` in the core's protocols."""

    by_number: Mapping[int, str]

    def source_of(self, number: int) -> str:
        return self.by_number[number]


@attrs.frozen
class Sources:
    """The sources of a data set that is mixed of several; it has no names if it isn't.

    Attributes:
        names: In an order that all ranks share.
        mixed: The data set, or what tells of samples as it does; see `Dataset` in the core's
            protocols.
    """

    names: tuple[str, ...]
    mixed: Dataset | Numbered

    @classmethod
    def of(cls, dataset: Dataset) -> Sources:
        mixed = dataset.samples if isinstance(dataset, PackedDataset) else dataset
        return cls(tuple(getattr(mixed, "sources", ())), mixed)

    def of_sample(self, sample: int | None) -> str | None:
        """The source of a sample, by its number; None if there are no sources."""
        return self.mixed.source_of(sample) if self.names and sample is not None else None

    def learned(self, batches: Sequence[Batch]) -> dict[str, int]:
        """Supervised tokens by source.

        Raises:
            UserError: The collator doesn't keep its samples apart.
        """
        counts: Counter[str] = Counter(dict.fromkeys(self.names, 0))
        for batch in batches if self.names else ():
            samples = sample_of_tokens(batch)
            if samples is None:
                raise UserError(
                    f"The collator gives {len(batch['labels'])} rows for "
                    f"{len(batch['sample_id'])} samples and doesn't tell them apart by their "
                    "positions, so tokens of a mixture can't be counted by source.",
                    fix="write collate_fn: default_collater",
                    path=("dataloader", "collate_fn"),
                )
            learned = samples[shift_labels(batch) != IGNORE_INDEX]
            for sample, count in Counter(learned.tolist()).items():
                counts[self.mixed.source_of(sample)] += count
        return dict(counts)
