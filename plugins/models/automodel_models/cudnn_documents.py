"""Attention within documents by cuDNN's kernels, which take documents of any lengths behind each
other ("ragged" in cuDNN's words, THD in others').

PyTorch up to 2.13 has the kernels, and builds their plan again in every call, which takes 42 ms
(https://github.com/pytorch/pytorch/pull/191576). The package `nvidia-cudnn-frontend` lets plans be
kept. One serves all documents up to a number of them and a longest one, both rounded up to powers
of two: those that aren't there have no tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from automodel_models.cudnn_plans import Shape, plans_for

# cuDNN's offsets are of 32 bits here.
MOST_NUMBERS = 2**31


def attend_within(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of each token to what is before it in its document, and to itself.

    Args:
        query: `[tokens, heads, width]`, bfloat16 or float16.
        key: `[tokens, kv_heads, width]`.
        value: As `key`.
        bounds: `[documents + 1]`, int32: where documents begin and the last one ends. There is a
            plan for each number of them, so it should be one of few; some may have no tokens.
        longest: Tokens that none has more of.
        scale: Of the scores; `width ** -0.5` if left out.

    Returns:
        `[tokens, heads, width]`.

    Raises:
        ValueError: There are more numbers than cuDNN's offsets count.
    """
    if query.numel() >= MOST_NUMBERS:
        raise ValueError(f"cuDNN's ragged attention counts up to {MOST_NUMBERS} numbers")
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[2]
    return _attend(
        query.contiguous(), key.contiguous(), value.contiguous(),
        bounds.diff(), bounds * (heads * width), bounds * (kv_heads * width), bounds * heads,
        longest, width**-0.5 if scale is None else scale,
    )[0]  # fmt: skip


@torch.library.custom_op("automodel_models::attend_within", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    rows: torch.Tensor,
    longest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and of each row of scores what the backward pass needs, `[tokens, heads]`.

    `lengths` are documents' in tokens; `queries`, `keys` and `rows` say where they begin in those
    tensors, in elements.
    """
    out = torch.empty_like(query)
    stats = query.new_empty(query.shape[:2], dtype=torch.float32)
    plan = plans_for(Shape.of(query, key, lengths, longest, scale)).forward
    plan(
        query.device, query=query, key=key, value=value, out=out, stats=stats,
        lengths=lengths, queries=queries, keys=keys, rows=rows,
    )  # fmt: skip
    return out, stats


@_attend.register_fake
def _(query, key, value, lengths, queries, keys, rows, longest, scale):
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.custom_op("automodel_models::attend_within_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    stats: torch.Tensor,
    longest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value."""
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    plan = plans_for(Shape.of(query, key, lengths, longest, scale)).backward
    plan(
        query.device, query=query, key=key, value=value, out=out, stats=stats,
        lengths=lengths, queries=queries, keys=keys, rows=rows,
        gradient=gradient.contiguous(), of_query=found[0], of_key=found[1], of_value=found[2],
    )  # fmt: skip
    return found


@_backward.register_fake
def _(gradient, query, key, value, *_):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(
    ctx: Any, gradient: torch.Tensor, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    found = _backward(gradient, *ctx.saved_tensors, ctx.longest, ctx.scale)
    return *found, None, None, None, None, None, None


_attend.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.automodel_models.attend_within)
def _(query, key, value, *_, **__):
    """Two products of documents as if they were one; of tensors it is given the shapes."""
    return 4 * math.prod(query) * query[0]


@register_flop_formula(torch.ops.automodel_models.attend_within_backward)
def _(gradient, query, *_, **__):
    return 10 * math.prod(query) * query[0]
