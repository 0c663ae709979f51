"""Positions of models that place images in three dimensions, as Qwen2-VL does (M-RoPE, section 2.1
of https://arxiv.org/abs/2409.12191).

Such a model finds them itself, behind the padding of either side by the attention mask, if it is
given none; but of a packed row it would take all documents for one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import attrs
import torch
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.protocols import Batch
from automodel_core.train.packed_documents import apart, is_packed

# What tells such a model where images and videos are, beside what is of tokens.
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def rope_index(model: PreTrainedModel) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The model's own count of positions in three dimensions; None if it has one dimension."""
    owners = (each for each in (model, model.base_model) if hasattr(each, "get_rope_index"))
    return next((each.get_rope_index for each in owners), None)


@attrs.frozen
class ImagePositions:
    """Tells a model the positions of its documents; see `documents.Teller`.

    Args:
        count: The model's `rope_index`.
    """

    count: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def __call__(self, batch: Batch, put: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Nothing for rows of one text; no positions for rows of one document with images; for rows
        of several `position_ids` `[4, rows, sequence]`: those in the document, by which documents
        are told apart, and by time, height and width."""
        seen = has_grid(batch)
        if not is_packed(batch):
            return {"position_ids": None} if seen else {}
        positions = batch["position_ids"]
        in_space = self.in_space(batch) if seen else positions.expand(3, -1, -1)
        return {
            "position_ids": put(torch.cat([positions[None], in_space])),
            "attention_mask": None,
        }

    def in_space(self, batch: Batch) -> torch.Tensor:
        """`[3, rows, sequence]`, counted in each document from 0; 0 at padding."""
        documents = apart(batch)
        known = inspect.signature(self.count).parameters
        grids = {name: batch[name] for name in GRIDS if name in batch and name in known}
        tokens = {
            name: documents[name] for name in ("input_ids", "mm_token_type_ids", "attention_mask")
        }
        counted, _ = self.count(**tokens, **grids)
        found = torch.zeros((3, *batch["labels"].shape), dtype=counted.dtype)
        found[:, batch["attention_mask"] != 0] = counted[:, documents["attention_mask"] != 0]
        return found


def has_grid(batch: Batch) -> bool:
    """Whether a batch has images or videos for such a model.

    Raises:
        UserError: It doesn't say which tokens they are, so the model would count all as text.
    """
    if "image_grid_thw" not in batch and "video_grid_thw" not in batch:
        return False
    if "mm_token_type_ids" not in batch:
        raise UserError(
            "The batch has images and no mm_token_type_ids, without which this model would place "
            "them as if they were text.",
            fix="let the collator pass on what the processor gives with "
            "return_mm_token_type_ids=True",
            path=("dataloader", "collate_fn"),
        )
    return True
