"""Context parallelism: ranks that share every sequence.

Each rank computes with its part of the positions. Only attention needs the others' keys and values,
which are gathered for it, layer by layer, as for Llama 3 (Dubey et al. 2024, section 3.3.2,
https://arxiv.org/abs/2407.21783); the gradients of what was gathered are summed where it came from.
Attention goes through PyTorch's SDPA, on any device and over any backend.

A causal model does more work for later positions. So a sequence is cut in twice as many chunks as
there are ranks, and rank r takes the chunks r and -1 - r: all ranks have the same work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from automodel_core.errors import UserError
from automodel_core.protocols import Batch

# Under this name a model's attention is ours.
ATTENTION = "automodel_shared_sequences"
# What a model hands through to its attention while sequences are shared. It travels with the call,
# so that layers which compute again in the backward pass find it too.
KEYWORD = "shared_sequence"

# Arguments by which models ask for more than causal attention.
CHANGES_ATTENTION = ("softcap", "sliding_window", "s_aux", "position_bias")

TokenLosses = Callable[..., torch.Tensor]

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)


@attrs.define
class SharedSequence:
    """A rank's part of the sequences of one forward pass.

    Attributes:
        group: The ranks that share them.
        length: Positions of the whole, a multiple of twice the ranks.
        masks: For this rank's two chunks: how many positions of the whole the chunk's last one
            sees, and what of them the others don't see.
        calls: How many times attention asked for it.
    """

    group: dist.ProcessGroup
    length: int
    masks: list[tuple[int, CausalBias]] = attrs.field(init=False)
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        # Here, since PyTorch can't make them while it records a layer that will compute again.
        size = self.length // (2 * self.group.size())
        ends = [(chunk + 1) * size for chunk in self.chunks()]
        self.masks = [(end, causal_lower_right(size, end)) for end in ends]

    def chunks(self) -> tuple[int, int]:
        """This rank's two, of `2 * ranks`."""
        return chunks_of(self.group)

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """See `part_of`."""
        return part_of(whole, self.group)


def chunks_of(group: dist.ProcessGroup) -> tuple[int, int]:
    """Which two of `2 * ranks` chunks this rank takes."""
    rank = group.rank()
    return rank, 2 * group.size() - 1 - rank


def part_of(whole: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`[batch, sequence]` to this rank's `[batch, sequence / ranks]`."""
    pieces = whole.chunk(2 * group.size(), dim=1)
    return torch.cat([pieces[each] for each in chunks_of(group)], dim=1)


def use_shared_attention(model: PreTrainedModel) -> None:
    """Let a model's attention take shared sequences; without them it is SDPA as before.

    Raises:
        UserError: The model does more along the sequence than causal attention with SDPA.
    """
    check_model(model)
    AttentionInterface.register(ATTENTION, shared_attention)
    AttentionMaskInterface.register(ATTENTION, mask_unless_shared)
    model.set_attn_implementation(ATTENTION)


def check_model(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose positions can't be dealt to ranks.

    Raises:
        UserError: With the reason.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    reason = None
    convolves = any(isinstance(module, nn.Conv1d) for module in model.modules())
    if model.config is not config:
        reason = "it takes more than text"
    elif kinds or (window and getattr(config, "use_sliding_window", True)):
        reason = f"it has layers of another kind ({', '.join(sorted(kinds)) or 'sliding window'})"
    elif getattr(config, "attn_logit_softcapping", None):
        reason = "it caps attention's logits, which SDPA can't"
    elif config._attn_implementation != "sdpa":
        reason = f"its attention is {config._attn_implementation}, not sdpa"
    elif model._is_stateful or convolves:
        reason = "it has a recurrence or convolution along the sequence"
    elif "position_ids" not in inspect.signature(model.forward).parameters:
        reason = "it takes no position_ids"
    if reason:
        raise UserError(
            f"Context parallelism needs causal attention through SDPA in every layer, and "
            f"{type(model).__name__} can't share its sequences: {reason}.",
            fix="write cp_size: 1",
            argument="cp_size",
        )


def on_a_part(token_losses: TokenLosses, group: dist.ProcessGroup) -> TokenLosses:
    """`token_losses` of this rank's part of the sequences: those of a group add up to the whole's.

    Labels come shifted, so a part's last position finds its label, the next chunk's first token.
    """

    def run(inputs: Batch, labels: torch.Tensor, *more: Any) -> torch.Tensor:
        check_inputs(inputs)
        ids = inputs["input_ids"]
        shared = SharedSequence(group, ids.shape[1])
        counted = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        mine = {"input_ids": shared.part(ids), "position_ids": shared.part(counted)}
        with _told(), other_dropout(group.rank(), ids.device):
            losses = token_losses({**mine, KEYWORD: shared}, shared.part(labels), *more)
        if not shared.calls:
            raise UserError(
                "This model's layers don't hand keywords on to their attention, so they can't "
                "share sequences.",
                fix="write cp_size: 1",
                path=("distributed", "cp_size"),
            )
        return losses

    return run


def check_inputs(inputs: Batch) -> None:
    """Only rows of one document each that begin at the first position need no mask.

    Raises:
        UserError: There is something else.
    """
    if more := sorted(inputs.keys() - {"input_ids"}):
        raise UserError(
            "Under context parallelism rows hold one sample each, padded on the right; these come "
            f"with {', '.join(more)}.",
            fix="write padding_side: right for the collator, or cp_size: 1",
            path=("distributed", "cp_size"),
        )


@contextmanager
def other_dropout(rank: int, device: torch.device) -> Iterator[None]:
    """Within it a rank draws dropout of its own, though the ranks of a sequence have one random
    state, and have it again afterwards: they hold other positions. What is drawn follows from that
    state, so a resumed run draws the same."""
    drawn = int(torch.randint(2**31, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(drawn + rank)
        yield


@contextmanager
def _told() -> Iterator[None]:
    token = _sharing.set(True)
    try:
        yield
    finally:
        _sharing.reset(token)


def mask_unless_shared(*arguments: Any, **named: Any) -> torch.Tensor | None:
    """transformers asks for a mask of what it is given, which is a part."""
    return None if _sharing.get() else sdpa_mask(*arguments, **named)


def shared_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it.

    Args:
        module: The layer's attention.
        query: `[batch, heads, positions, size]` of this rank's positions.
        key: `[batch, key heads, positions, size]`, likewise.
        value: As `key`.
        attention_mask: For sequences that aren't shared.
        dropout: Share of the attention weights that is dropped.
        scaling: Of the logits; 1 / sqrt(size) if None.
        named: Among others the SharedSequence.

    Returns:
        `[batch, positions, heads, size]`.
    """
    shared: SharedSequence | None = named.pop(KEYWORD, None)
    if shared is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **named
        )
    check_attention(module, named)
    shared.calls += 1
    keys, values = _Gathered.apply(torch.stack([key, value]), shared.group).unbind()
    outputs = [
        scaled_dot_product_attention(
            queries,
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for queries, (seen, mask) in zip(query.chunk(2, dim=2), shared.masks, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def check_attention(module: nn.Module, named: Mapping[str, Any]) -> None:
    """Refuse what a layer asks of its attention besides being causal.

    Raises:
        UserError: With its name.
    """
    asked = [name for name in CHANGES_ATTENTION if named.get(name) is not None]
    causal = named.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        asked.append("is_causal: false")
    if asked:
        raise UserError(
            f"{type(module).__name__} asks for {', '.join(asked)}; ranks share causal attention to "
            "all positions before.",
            fix="write cp_size: 1",
            path=("distributed", "cp_size"),
        )


class _Gathered(torch.autograd.Function):
    """Positions of all ranks in their order, in dim 3; the gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """`[..., positions, size]` to `[..., positions * ranks, size]`."""
        ctx.group = group
        parts = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(parts, mine.contiguous(), group=group)
        first, last = zip(*(part.chunk(2, dim=-2) for part in parts), strict=True)
        return torch.cat([*first, *reversed(last)], dim=-2)

    @staticmethod
    def backward(ctx: Any, whole: torch.Tensor) -> tuple[torch.Tensor, None]:
        ranks = ctx.group.size()
        chunks = whole.chunk(2 * ranks, dim=-2)
        parts = [torch.cat([chunks[r], chunks[-1 - r]], dim=-2) for r in range(ranks)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts, group=ctx.group)
        return mine, None
