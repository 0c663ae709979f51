"""The product with a low-rank matrix, keeping nothing for the backward pass but what it was given.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) adds `scale * (x A^T) B^T` to what a frozen
layer makes of `x`. Written in plain operations, autograd keeps a copy of `x` in the adapter's
precision, the dropout's mask and output, and `x A^T`. Here it keeps `x`, which the layers that read
it share, and the two small factors; the rest is computed again, at the cost of one product with A.
"""

from __future__ import annotations

from typing import Any

import torch

from automodel_peft.dropout import draw_seed, seeded_mask


def add_low_rank(
    output: torch.Tensor,
    x: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`output + scale * dropout(x) A^T B^T`, in the dtype of `output`.

    Args:
        output: `[..., features_out]`, what the frozen layer makes of `x`.
        x: `[..., features_in]`.
        factors: A `[rank, features_in]` and B `[features_out, rank]`. They are rounded to the dtype
            of `output` for the products; their gradients come in their own.
        scale: Of the update; a scalar where the others are, so that layers with different scales
            share one compiled graph.
        dropout: Probability that an element of `x` is dropped on the adapter's way.
    """
    if not dropout:
        return _AddLowRank.apply(output, x, *factors, scale, None, dropout)
    # What dropout multiplies the kept elements by is multiplied into the scale instead.
    return _AddLowRank.apply(output, x, *factors, scale / (1.0 - dropout), draw_seed(), dropout)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: torch.Tensor,
        seed: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b, scale, seed)
        ctx.dropout, ctx.compute = dropout, output.dtype
        rows, _ = _rows_and_mask(x, seed, dropout, output.dtype)
        with torch.autocast(output.device.type, enabled=False):
            # Not in place: selective activation checkpointing may keep the product.
            reduced = (rows @ a.to(output.dtype).t()) * scale
            flat = output.reshape(-1, output.shape[-1])
            total = torch.addmm(flat, reduced, b.to(output.dtype).t())
        return total.view(output.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, scale, seed = ctx.saved_tensors
        low_a, low_b = a.to(ctx.compute), b.to(ctx.compute)
        rows, mask = _rows_and_mask(x, seed, ctx.dropout, ctx.compute)
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_reduced = (flat @ low_b).mul_(scale)
        of_b = flat.t() @ (rows @ low_a.t()).mul_(scale)
        of_a = of_reduced.t() @ rows
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = of_reduced @ low_a
            if mask is not None:
                of_x = of_x.mul_(mask)
            of_x = of_x.view(x.shape).to(x.dtype)
        return gradient, of_x, of_a.to(a.dtype), of_b.to(b.dtype), None, None, None


def _rows_and_mask(
    x: torch.Tensor, seed: torch.Tensor | None, dropout: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`x` as the adapter sees it, `[tokens, features_in]`, and what was dropped of it."""
    rows = x.to(dtype).reshape(-1, x.shape[-1])
    if seed is None:
        return rows, None
    mask = seeded_mask(rows, seed, dropout)
    return rows * mask, mask
