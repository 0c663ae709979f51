"""What a model is told of what its tokens may see, beside the tokens: the masks that it can do
without, and where documents begin in rows of several.

It is found on the CPU from the positions, once a step for all layers. Compiled layers see one shape
however many documents there are, or are told that it varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig, PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.protocols import Batch
from automodel_core.train.image_blocks import SEE_BOTH_WAYS, ImageBlocks
from automodel_core.train.image_positions import ImagePositions, rope_index
from automodel_core.train.packed_documents import is_packed
from automodel_core.train.rows import on_host

# Tokens in a block of FlexAttention's, which skips whole ones.
BLOCK = 128
# Documents that cuDNN's plans are made for, at least.
FEWEST_DOCUMENTS = 8
# What a model makes for itself if it isn't given.
MASKS = {"attention_mask", "position_ids"}
# From a batch on the CPU, and what copies a tensor to the device, to what the model is given in
# place of what the batch has by that name; nothing leaves it to `masks_left_out`.
Teller = Callable[[Batch, Callable[[torch.Tensor], torch.Tensor]], Batch]


def teller(model: PreTrainedModel) -> Teller | None:
    """What tells a model where documents begin; None where transformers' masks do.

    Block masks are made here where all layers see all that is before a token: transformers makes
    those of windows and chunks, for which it looks through the positions on the device and waits.
    """
    count = rope_index(model)
    if count is not None:
        return ImagePositions(count)
    config = model.config
    kind = getattr(config, "_attn_implementation", None)
    if config.model_type in SEE_BOTH_WAYS:
        return ImageBlocks(config.get_text_config(), kind, model.dtype)
    if kind == "varlen":
        return document_bounds
    if kind == "cudnn":
        return partial(document_bounds, rounded=True)
    reads_alone = config.get_text_config() is config  # others may look at the mask themselves
    if kind == "flex_attention" and reads_alone and sees_all_before(config):
        return document_blocks
    return None


def is_text_alone(batch: Batch) -> bool:
    """Whether nothing but positions and padding says what a token may see."""
    return batch.keys() - {"input_ids", "labels", "sample_id"} == MASKS


def masks_left_out(batch: Batch) -> set[str]:
    """The masks that a model of text does better without.

    Both, where causal attention is all there is: one sample a row, padded on the right only. No
    token sees the padding behind it, and nothing is learned there. With a mask, models look through
    it on the device for padding, which the host waits for, and leave the kernels that are made for
    causal attention.

    The attention mask, where rows are packed: models go by positions that begin again only without
    it. Padding, of position 0, is in documents of its own then.

    Raises:
        UserError: Rows are packed, and the model is told by something else what tokens see.
    """
    if is_text_alone(batch) and is_counted(batch):
        return MASKS
    if is_packed(batch):
        if "token_type_ids" in batch:
            raise UserError(
                "This model masks by token_type_ids, and how it does in packed rows isn't known.",
                fix="leave packed_sequence out; dataloader.group_by_length saves padding as well",
                path=("packed_sequence", "packed_sequence_size"),
            )
        return {"attention_mask"}
    return set()


def is_counted(batch: Batch) -> bool:
    """Whether every token's position is its place in the row, which no packed row's are."""
    positions, padding = on_host(batch["position_ids"]), on_host(batch["attention_mask"]) == 0
    return bool(((positions == np.arange(positions.shape[1])) | padding).all())


def sees_all_before(config: PretrainedConfig) -> bool:
    """Whether each layer's attention is causal, without windows or chunks."""
    kinds = getattr(config, "layer_types", None)
    windows = set(kinds) != {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    chunks = getattr(config, "attention_chunk_size", None)
    return not (windows or chunks) and getattr(config, "is_causal", True)


def document_bounds(
    batch: Batch, put: Callable[[torch.Tensor], torch.Tensor], rounded: bool = False
) -> Batch:
    """Where documents begin, one row of the batch behind the other.

    Args:
        batch: With `position_ids` `[batch, sequence]`, from 0 on in each document, and
            `attention_mask`, 0 at padding.
        put: Copies a tensor to the device.
        rounded: Whether documents of no length follow, so that there are 8, 16, 32, ...: kernels
            that are planned for a number of them have few then.

    Returns:
        By transformers' name, `cu_seq_lens_q` `[documents + 1]`, int32: where documents begin and
        the last one ends. Compiled code is told that their number varies. And a mask that says
        nothing, for transformers to make none of its own. Padding is a document, or the end of one.
        Nothing if there is more than text, which the model may mask by itself.
    """
    if not is_text_alone(batch):
        return {}
    positions, real = batch["position_ids"], batch["attention_mask"] != 0
    begins = positions == 0
    begins[:, 1:] &= real[:, 1:] | real[:, :-1]
    begins[:, 0] = True
    (starts,) = begins.flatten().nonzero(as_tuple=True)
    missing = max(FEWEST_DOCUMENTS, 1 << (len(starts) - 1).bit_length()) - len(starts)
    ends = torch.full((1 + missing * rounded,), positions.numel())
    bounds = put(torch.cat([starts, ends]).to(torch.int32))
    torch._dynamo.maybe_mark_dynamic(bounds, 0)
    return {
        "cu_seq_lens_q": bounds,
        "attention_mask": put(torch.ones(1, 1, 1, 1, dtype=torch.bool)),
    }


def document_blocks(batch: Batch, put: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The block mask of causal attention within documents (https://arxiv.org/abs/2412.05496).

    A token sees what lies between its document's start and itself. So of keys in blocks of BLOCK
    tokens, a block of queries sees those from the one that its first token's document begins in;
    and all of a block, which needs no mask, if that lies before the queries and behind the start
    of the last one's document. That is told from a few tokens of each block, where
    `create_block_mask` looks at all pairs.

    Args:
        batch: As for `document_bounds`. Each padding token sees itself alone.
        put: Copies a tensor to the device.

    Returns:
        `attention_mask`, a BlockMask `[batch, 1, sequence, sequence]`; nothing if the positions
        aren't those of documents that follow each other, or there is more than text.
    """
    if not is_text_alone(batch):
        return {}
    positions = batch["position_ids"]
    follows = positions[:, 1:] == positions[:, :-1] + 1
    if positions[:, 0].any() or not (follows | (positions[:, 1:] == 0)).all():
        return {}
    length = positions.shape[1]
    starts = torch.arange(length) - positions
    begin = torch.arange(0, length, BLOCK)
    end = (begin + BLOCK).clamp(max=length)
    first, last = starts[:, begin, None], starts[:, end - 1, None]
    seen = (begin <= begin[:, None]) & (end > first)
    whole = begin + BLOCK <= length  # what stands behind the row sees nothing
    full = seen & whole[:, None] & (begin < begin[:, None]) & (begin >= last)
    orders = (put(each) for some in (seen & ~full, full) for each in in_order(some[:, None]))
    return {"attention_mask": block_mask(put(starts.to(torch.int32)), *orders)}


def in_order(chosen: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of blocks that are looked at, boolean `[..., queries, keys]`: how many there are for each
    block of queries, and which, those first; and the same for each block of keys. int32, and
    contiguous, for the kernels read them without asking for strides."""
    for each in (chosen, chosen.mT.contiguous()):
        yield each.sum(-1, dtype=torch.int32)
        yield each.byte().argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def block_mask(starts: torch.Tensor, *orders: torch.Tensor) -> BlockMask:
    """A mask of those blocks.

    Args:
        starts: `[batch, sequence]`, int32: where the document of each token begins.
        orders: As `in_order` gives them for blocks that need a mask, and then for the others.
    """

    def visible(row, head, query, key):
        return (key <= query) & (key >= starts[row, query])

    keys, which_keys, queries, which_queries, *full = orders
    full_keys, which_full_keys, full_queries, which_full_queries = full
    return BlockMask(
        seq_lengths=(starts.shape[1], starts.shape[1]),
        kv_num_blocks=keys,
        kv_indices=which_keys,
        full_kv_num_blocks=full_keys,
        full_kv_indices=which_full_keys,
        q_num_blocks=queries,
        q_indices=which_queries,
        full_q_num_blocks=full_queries,
        full_q_indices=which_full_queries,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=visible,
    )
