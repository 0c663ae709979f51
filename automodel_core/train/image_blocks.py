"""Masks of packed rows for models whose images see themselves both ways, as Gemma 3's do
(section 2.1 of https://arxiv.org/abs/2503.19786 has its windows).

The model makes such masks from `token_type_ids`. Of packed rows transformers (up to 5.23) takes
them at each document's positions, as if it stood first in its row, so here they are made from the
row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import PretrainedConfig

from automodel_core.errors import UserError
from automodel_core.protocols import Batch
from automodel_core.train.packed_documents import is_packed

# By `model_type`, those whose masks these are.
SEE_BOTH_WAYS = ("gemma3",)

# From numbers of row, head, query and key to whether the query sees the key.
Visible = Callable[..., torch.Tensor]


def looks_elsewhere(config: PretrainedConfig) -> bool:
    """Whether images see themselves both ways in layers with a window, for which transformers would
    look at the row's first document alone, and no masks are made for the model here: Gemma 4."""
    text = config.get_text_config()
    windowed = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    both_ways = getattr(text, "use_bidirectional_attention", None) == "vision"
    return windowed and both_ways and config.model_type not in SEE_BOTH_WAYS


@attrs.frozen
class ImageBlocks:
    """Tells a model what the tokens of packed rows see; see `documents.Teller`.

    Args:
        config: The language model's.
        attention: Its `attn_implementation`.
        dtype: That of its weights.
    """

    config: PretrainedConfig
    attention: str
    dtype: torch.dtype

    def __call__(self, batch: Batch, put: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """`attention_mask` of packed rows by kind of layer; nothing for other rows."""
        if "token_type_ids" not in batch or not is_packed(batch):
            return {}
        documents, images = map(put, numbered(batch))
        visible = within(documents, images)
        window = self.config.sliding_window
        kinds: Mapping[str, Visible] = {
            "full_attention": visible,
            "sliding_attention": lambda row, head, query, key: (
                visible(row, head, query, key) & (key > query - window)
            ),
        }
        masks = {kind: self.mask(each, like=documents) for kind, each in kinds.items()}
        return {"attention_mask": masks}

    def mask(self, visible: Visible, *, like: torch.Tensor) -> torch.Tensor:
        """As the attention takes it, `[rows, 1, sequence, sequence]`; `like` is `[rows, sequence]`,
        on the device.

        Raises:
            UserError: It takes no such masks.
        """
        (rows, length), device = like.shape, like.device
        if self.attention == "flex_attention":
            return create_block_mask(visible, rows, None, length, length, device=device)
        if self.attention not in ("sdpa", "eager"):
            raise UserError(
                "Packed rows with images of this model need masks of all pairs of tokens, which "
                f"attn_implementation {self.attention} doesn't take.",
                fix="write attn_implementation: sdpa or flex",
                path=("model", "attn_implementation"),
            )
        row = torch.arange(rows, device=device)[:, None, None]
        token = torch.arange(length, device=device)
        seen = visible(row, 0, token[:, None], token)[:, None]
        if self.attention == "sdpa":
            return seen
        lowest = torch.finfo(self.dtype).min
        return torch.zeros_like(seen, dtype=self.dtype).masked_fill(~seen, lowest)


def numbered(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token, the number of its document in the row and of its image; 0 is none."""
    image = batch["token_type_ids"] == 1
    begins = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    return (batch["position_ids"] == 0).cumsum(1), torch.where(image, begins.cumsum(1), 0)


def within(documents: torch.Tensor, images: torch.Tensor) -> Visible:
    """A token sees, in its document, what is before it and the image that it is of."""

    def visible(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same_image = (images[row, query] == images[row, key]) & (images[row, query] > 0)
        same = documents[row, query] == documents[row, key]
        return same & ((key <= query) | same_image)

    return visible
