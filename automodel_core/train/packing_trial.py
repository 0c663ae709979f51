"""See, before a model trains, that it can be given packed rows with images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Dataset
from automodel_core.train.lengths import Collate
from automodel_core.train.packed_documents import DOCUMENTS, joined
from automodel_core.train.packing import PackedDataset
from automodel_core.train.step import Objective

# How far what a document loses in a row may be from what it loses alone.
CLOSE = {torch.float32: 1e-4}
CLOSE_IN_HALF = 3e-2


def check_images_apart(
    objective: Objective, model: PreTrainedModel, dataset: Any, collate: Collate
) -> None:
    """See, by trying two documents of a row, that the second loses what it loses alone, and to the
    last digits the same whatever the images of the first are.

    Args:
        objective: The loss.
        model: What is trained.
        dataset: What it is trained on; only packed rows of documents with images are tried.
        collate: The YAML's collator, which takes documents.

    Raises:
        UserError: This model can't have images of several documents in a row.
    """
    if not isinstance(dataset, PackedDataset) or DOCUMENTS not in dataset[0]:
        return
    pair = pair_with_images(dataset.samples, dataset.rows, collate)
    if pair is None:
        return
    name = type(model).__name__
    try:
        alone, beside, beside_another = losses_of_second(objective, model, pair, collate)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise refused(f"{name} can't be given the images of several documents: {error}") from error
    if not math.isclose(beside, beside_another, rel_tol=1e-6):
        raise refused(f"documents would see each other's images: {name} doesn't keep them apart.")
    close = CLOSE.get(objective.precision.compute, CLOSE_IN_HALF)
    if not math.isclose(alone, beside, rel_tol=close):
        raise refused(
            f"a document with images has another loss than alone in {name}: {beside:.6g}, not "
            f"{alone:.6g}."
        )


def refused(why: str) -> UserError:
    return UserError(
        f"In a packed row {why}",
        fix="leave packed_sequence out; dataloader.group_by_length saves padding as well",
        path=("packed_sequence", "packed_sequence_size"),
    )


def pair_with_images(
    samples: Dataset, rows: Sequence[Sequence[int]], collate: Collate, looked: int = 32
) -> tuple[Any, Any] | None:
    """Two samples with images that share a row, of the first rows; None if there are none."""
    for row in rows[:looked]:
        seeing = [
            sample
            for sample in map(samples.__getitem__, row if len(row) > 1 else ())
            if "pixel_values" in collate([sample])
        ]
        if len(seeing) > 1:
            return seeing[0], seeing[1]
    return None


@torch.no_grad()
def losses_of_second(
    objective: Objective, model: PreTrainedModel, pair: tuple[Any, Any], collate: Collate
) -> tuple[float, float, float]:
    """What the second of two documents loses alone, behind the first, and behind the first with
    its pixels negated."""
    first, second = collate([pair[0]]), collate([pair[1]])
    both = joined(collate(list(pair)), [2])
    both["labels"][:, : int(first["attention_mask"].sum())] = IGNORE_INDEX
    pixels, own = both["pixel_values"], len(first["pixel_values"])
    negated = (
        torch.cat([-pixels[:own], pixels[own:]])
        if isinstance(pixels, torch.Tensor)
        else [*(-each for each in pixels[:own]), *pixels[own:]]
    )
    tried = (joined(second, [1]), both, both | {"pixel_values": negated})
    training = model.training
    model.eval()
    try:
        losses = [objective.loss_sum(objective.prepare(each)).item() for each in tried]
    finally:
        model.train(training)
    return losses[0], losses[1], losses[2]
