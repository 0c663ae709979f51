"""cuDNN's attention of documents of any lengths behind each other, by PyTorch's call of it.

PyTorch up to 2.13 builds cuDNN's plan again in every call, forward and backward
(https://github.com/pytorch/pytorch/pull/191576: 42 ms a call), so of it the time of the kernels
alone tells something.
"""

from __future__ import annotations

import torch


class RaggedByPyTorch(torch.autograd.Function):
    """Of query, key and value, `[tokens, heads, width]`, and of where documents begin and the last
    one ends, int32, none longer than `longest` tokens: `[tokens, heads, width]`."""

    @staticmethod
    def forward(ctx, query, key, value, bounds, longest):
        out, stats, _, _, _, _, seed, offset, _ = torch.ops.aten._cudnn_attention_forward(
            query, key, value, None, bounds, bounds, longest, longest, True, 0.0, True, False
        )
        ctx.save_for_backward(query, key, value, out, stats, seed, offset, bounds)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, stats, seed, offset, bounds = ctx.saved_tensors
        gradients = torch.ops.aten._cudnn_attention_backward(
            gradient.contiguous(), query, key, value, out, stats, seed, offset, None,
            bounds, bounds, ctx.longest, ctx.longest, 0.0, True,
        )  # fmt: skip
        return *gradients, None, None
