"""cuDNN's attention within documents behind each other, which PyTorch has and calls nowhere.

An experiment for `packed_attention.py` and `race.py`: on Hopper cuDNN's kernels are the fastest for
rows of one document.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# cuDNN plans anew for each number of documents: it is filled up to a multiple, with empty ones.
DOCUMENTS = 16


def filled_up(bounds: torch.Tensor, tokens: int) -> torch.Tensor:
    return pad(bounds, (0, -(len(bounds) - 1) % DOCUMENTS), value=tokens)


@torch.library.custom_op("benchmarks::cudnn_ragged", mutates_args=())
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention.

    Args:
        query: `[tokens, heads, width]`.
        key: `[tokens, kv_heads, width]`.
        value: As `key`.
        bounds: `[documents + 1]`, int32: where documents begin, and the last one ends.
        longest: Tokens that no document exceeds.
        scale: Of the scores.

    Returns:
        `[tokens, heads, width]`, and float32 `[tokens, heads, 1]` for the backward pass.
    """
    bounds = filled_up(bounds, len(query))
    out, sums, *_ = torch.ops.aten._cudnn_attention_forward(
        query, key, value, None, bounds, bounds, longest, longest,
        True, 0.0, True, False, scale=scale,
    )  # fmt: skip
    return out.contiguous(), sums.contiguous()


@attend.register_fake
def _(query, key, value, bounds, longest, scale):
    sums = query.new_empty((*query.shape[:2], 1), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), sums


@torch.library.custom_op("benchmarks::cudnn_ragged_backward", mutates_args=())
def attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `attend`'s query, key and value."""
    bounds = filled_up(bounds, len(query))
    nothing = torch.zeros((), dtype=torch.int64, device=query.device)  # there is no dropout
    found = torch.ops.aten._cudnn_attention_backward(
        gradient.contiguous(), query, key, value, out, sums, nothing, nothing, None,
        bounds, bounds, longest, longest, 0.0, True, scale=scale,
    )  # fmt: skip
    return tuple(each.contiguous() for each in found)


@attend_backward.register_fake
def _(gradient, query, key, value, out, sums, bounds, longest, scale):
    return tuple(
        torch.empty_like(each, memory_format=torch.contiguous_format)
        for each in (query, key, value)
    )


def keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, bounds, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple:
    found = attend_backward(gradient, *ctx.saved_tensors, ctx.longest, ctx.scale)
    return (*found, None, None, None)


attend.register_autograd(backward, setup_context=keep)


def cudnn_attention(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, **named):
    """As transformers calls attention, with `cu_seq_lens_q`; without it by SDPA."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **named)
    batch, _, length, width = query.shape
    flat = [each.transpose(1, 2).flatten(0, 1).contiguous() for each in (query, key, value)]
    out, _ = attend(*flat, cu_seq_lens_q, length, scaling or width**-0.5)
    return out.view(batch, length, *out.shape[1:]), None
