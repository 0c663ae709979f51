"""Dropout masks that are a function of their seed, so that none has to be kept.

The seed is drawn from PyTorch's generator on the CPU, whose state belongs to every checkpoint and
is put back when activation checkpointing computes a layer again. The backward pass draws the same
mask from the same seed, where torch.nn.Dropout keeps the mask and its output is kept too.
"""

from __future__ import annotations

import torch


def draw_seed() -> torch.Tensor:
    """An int64 scalar on the CPU: reading it doesn't wait for a GPU."""
    return torch.randint(2**62, (), device="cpu")


@torch.library.custom_op("automodel_peft::seeded_mask", mutates_args=())
def seeded_mask(x: torch.Tensor, seed: torch.Tensor, dropped: float) -> torch.Tensor:
    """Zeros and ones at random, in the shape and dtype of `x`.

    Args:
        x: Any shape; its values don't matter.
        seed: What `draw_seed` gave; the same seed, shape and device give the same mask.
        dropped: Probability of a zero.
    """
    generator = torch.Generator(x.device).manual_seed(int(seed))
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return mask.bernoulli_(1.0 - dropped, generator=generator)


@seeded_mask.register_fake
def _(x: torch.Tensor, seed: torch.Tensor, dropped: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
