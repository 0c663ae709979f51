"""Where documents begin in rows of several, told to attention that takes no mask of all pairs.

It is found on the CPU from the positions, once a step for all layers. Compiled layers see one shape
however many documents there are, or are told that it varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig, PreTrainedModel

from automodel_core.protocols import Batch

# Tokens in a block of FlexAttention's, which skips whole ones.
BLOCK = 128
# From a batch on the CPU, and what copies a tensor to the device, to more inputs of the model.
Teller = Callable[[Batch, Callable[[torch.Tensor], torch.Tensor]], Batch]


def teller(model: PreTrainedModel) -> Teller | None:
    """What tells a model's attention where documents begin; None where transformers' masks do.

    Block masks are made here where all layers see all that is before a token: transformers makes
    those of windows and chunks, for which it looks through the positions on the device and waits.
    """
    config = model.config
    kind = getattr(config, "_attn_implementation", None)
    if kind == "varlen":
        return document_bounds
    reads_alone = config.get_text_config() is config  # others may look at the mask themselves
    if kind == "flex_attention" and reads_alone and sees_all_before(config):
        return document_blocks
    return None


def sees_all_before(config: PretrainedConfig) -> bool:
    """Whether each layer's attention is causal, without windows or chunks."""
    kinds = getattr(config, "layer_types", None)
    windows = set(kinds) != {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    chunks = getattr(config, "attention_chunk_size", None)
    return not (windows or chunks) and getattr(config, "is_causal", True)


def document_bounds(batch: Batch, put: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Where documents begin, one row of the batch behind the other.

    Args:
        batch: With `position_ids` `[batch, sequence]`, from 0 on in each document, and
            `attention_mask`, 0 at padding.
        put: Copies a tensor to the device.

    Returns:
        By transformers' name, `cu_seq_lens_q` `[documents + 1]`, int32: where documents begin and
        the last one ends. Compiled code is told that their number varies. And a mask that says
        nothing, for transformers to make none of its own. Padding is a document, or the end of one.
    """
    positions, real = batch["position_ids"], batch["attention_mask"] != 0
    begins = positions == 0
    begins[:, 1:] &= real[:, 1:] | real[:, :-1]
    begins[:, 0] = True
    (starts,) = begins.flatten().nonzero(as_tuple=True)
    bounds = put(torch.cat([starts, torch.tensor([positions.numel()])]).to(torch.int32))
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
        aren't those of documents that follow each other.
    """
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
    block of queries, and which, those first; and the same for each block of keys. int32."""
    for each in (chosen, chosen.mT):
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
