"""Several samples in one row: which ones, and the data set of such rows.

The plan is made once, from the samples in the order of the seed's first epoch, so it is the same on
every rank and after every resume; each epoch shuffles its rows. Documents of a row don't see each
other: their positions begin again, which the labels' shift and the attention go by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from transformers import PreTrainedModel

from automodel_core.errors import ConfigPath, UserError
from automodel_core.protocols import IGNORE_INDEX, Batch, Dataset
from automodel_core.train.fingerprint import identity_of
from automodel_core.train.lengths import Collate, lengths_of
from automodel_core.train.order import epoch_order
from automodel_core.train.packed_documents import DOCUMENTS
from automodel_core.train.step import Objective

# Rows that are open at a time. More fill better, and cost more to look through.
WINDOW = 256


class FirstFit:
    """First-fit bin packing (Johnson 1973) over a bounded window, one item after another.

    An item is put into the oldest open row that has room for it, and opens another where none has.
    With `window` rows open, the oldest is closed for the next one.

    Attributes:
        rows: How many have been opened.

    Args:
        size: What a row holds.
        window: Rows that are open at a time.
    """

    def __init__(self, size: int, window: int = WINDOW) -> None:
        self.size, self.window, self.rows = size, window, 0
        # A ring of open rows: row r has its room at r % window, closed ones none.
        self.room = np.zeros(window, dtype=np.int64)

    def open(self, used: int) -> int:
        """Open a row of which so much is used; returns its number."""
        self.room[self.rows % self.window] = self.size - used
        self.rows += 1
        return self.rows - 1

    def place(self, length: int) -> int:
        """The number of the row that an item of at most `size` is put into."""
        length = max(length, 1)
        first = self.rows % self.window  # where the oldest open row is
        fits = self.room >= length
        behind = fits[first:].argmax() if fits[first:].any() else -1
        if behind >= 0:
            slot = first + behind
        elif fits[:first].any():
            slot = fits[:first].argmax()
        else:
            return self.open(length)
        self.room[slot] -= length
        # The newest row that lies in this slot.
        return int(slot + (self.rows - 1 - slot) // self.window * self.window)


def first_fit(lengths: Iterable[int], size: int, window: int = WINDOW) -> list[list[int]]:
    """Put each item where FirstFit does. It looks at the items in their order and at nothing
    behind.

    Args:
        lengths: Of the items, none above `size`.
        size: What a row holds.
        window: Rows that are open at a time.

    Returns:
        For each row, the numbers of its items; rows in the order in which they were opened.
    """
    fit, rows = FirstFit(size, window), []
    for number, length in enumerate(lengths):
        row = fit.place(length)
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
    return rows


def packed_row(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tokens of several samples, their labels, and positions that begin again with each; or the
    samples, if the collator is to make their tokens."""
    if "input_ids" not in samples[0]:
        return {DOCUMENTS: samples}
    return {
        "input_ids": [token for each in samples for token in each["input_ids"]],
        "labels": [label for each in samples for label in each["labels"]],
        "position_ids": [i for each in samples for i in range(len(each["input_ids"]))],
    }


@attrs.define(slots=False)
class PackedDataset:
    """Rows of several samples.

    Attributes:
        samples: The data set that they are of.
        size: Tokens that a row holds.
        rows: For each row, the indices of its samples.
        lengths: Tokens in each row.
        notes: What the plan came to.
    """

    samples: Dataset
    size: int
    rows: Sequence[Sequence[int]]
    lengths: np.ndarray
    notes: Sequence[str] = ()

    @classmethod
    def plan(
        cls, samples: Dataset, size: int, seed: int, path: ConfigPath, collate: Collate
    ) -> PackedDataset:
        """Pack a data set, looking at it in the order of the seed's first epoch.

        Args:
            samples: The data set.
            size: Tokens that a row holds.
            seed: The run's.
            path: Where the YAML asks for it.
            collate: Makes tokens of samples that are none yet, to count them.

        Raises:
            UserError: No sample fits.
        """
        lengths = lengths_of(samples, collate)
        order = np.asarray(epoch_order(len(samples), seed, 0, shuffle=True))
        fitting = order[lengths[order] <= size]
        if not len(fitting):
            raise UserError(
                f"Every sample is longer than packed_sequence_size, {size} tokens.",
                fix=f"write {int(lengths.max())} or more, or give the data set a max_length",
                path=path,
            )
        placed = first_fit(lengths[fitting].tolist(), size)
        rows = [fitting[row].tolist() for row in placed]
        full = int(lengths[fitting].sum()) / (len(rows) * size)
        notes = [
            f"{len(fitting):,} samples are packed in {len(rows):,} rows of {size:,} tokens, "
            f"{full:.1%} full."
        ]
        if too_long := len(order) - len(fitting):
            notes.append(f"Samples left out because they exceed a row: {too_long:,}.")
        return cls(samples, size, rows, np.array([lengths[row].sum() for row in rows]), notes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `packed_row`."""
        return packed_row([self.samples[sample] for sample in self.rows[index]])

    def members(self, index: int) -> Sequence[int]:
        """The samples in a row, by their index in the data set that they are of."""
        return self.rows[index]

    def identity(self, index: int) -> bytes:
        """What tells this row from others; see the core's `Dataset`."""
        return b"".join(identity_of(self.samples, sample) for sample in self.rows[index])


def check_collated(dataset: PackedDataset, collate: Callable[..., Batch], path: ConfigPath) -> None:
    """See that the collator leaves the positions that part documents.

    Raises:
        UserError: It doesn't.
    """
    row = max(range(min(len(dataset), 64)), key=lambda index: len(dataset.members(index)))
    batch = collate([dataset[row]])
    begins = (batch["position_ids"] == 0) & (batch["attention_mask"] != 0)
    if int(begins.sum()) != len(dataset.members(row)):
        raise UserError(
            "The collator doesn't keep the `position_ids` of its samples, so documents of a packed "
            "row couldn't be told apart.",
            fix="write collate_fn: default_collater, or leave packed_sequence out",
            path=path,
        )


def check_documents_apart(objective: Objective, model: PreTrainedModel) -> None:
    """See, by trying, that no document of a packed row sees the one before it.

    Raises:
        UserError: This model, or its attention, doesn't go by the positions.
    """
    if not seconds_stay(objective, model):
        attention = getattr(model.config, "_attn_implementation", None)
        raise leaking(f"{type(model).__name__} with attn_implementation {attention}")


def leaking(what: str) -> UserError:
    """The refusal of what doesn't keep documents apart."""
    return UserError(
        f"In a packed row documents would see each other: {what} doesn't keep them apart.",
        fix="leave packed_sequence out; dataloader.group_by_length saves padding as well",
        path=("packed_sequence", "packed_sequence_size"),
    )


def carries_state(model: PreTrainedModel) -> bool:
    """Whether any layer is a recurrence or a convolution over tokens, as transformers tells it: a
    state that doesn't begin again with a document's positions."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return getattr(model, "_is_stateful", False) or any(
        "attention" not in kind or "linear" in kind for kind in kinds
    )


@torch.no_grad()
def seconds_stay(objective: Objective, model: PreTrainedModel) -> bool:
    """Whether a row's second document has the same loss behind several first ones.

    Its first tokens alone are looked at, which stand nearest to the other document. What is masked
    weighs exactly nothing in attention, so the losses are equal to the last digits.
    """
    length, learned = 16, 4
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    second = torch.randint(vocabulary, (2, length), generator=generator)
    labels = torch.full((2, 2 * length), IGNORE_INDEX)
    labels[:, length : length + learned] = second[:, :learned]
    losses, training = [], model.training
    model.eval()
    for _ in range(4):
        first = torch.randint(vocabulary, (2, length), generator=generator)
        batch = {
            "input_ids": torch.cat([first, second], 1),
            "labels": labels,
            "attention_mask": torch.ones(2, 2 * length, dtype=torch.int64),
            "position_ids": torch.arange(length).repeat(2, 2),
        }
        losses.append(objective.loss_sum(objective.prepare(batch)).item())
    model.train(training)
    return math.isclose(min(losses), max(losses), rel_tol=2e-7)
