"""Dropout that is a function of its seed, so that its mask never has to be kept.

The seed is drawn from PyTorch's generator on the CPU, whose state belongs to every checkpoint and
is put back when activation checkpointing computes a layer again. The backward pass draws the same
mask from the same seed, where torch.nn.Dropout keeps the mask and its output is kept too.
"""

from __future__ import annotations

import torch


def draw_seed() -> torch.Tensor:
    """An int64 scalar on the CPU: reading it doesn't wait for a GPU."""
    return torch.randint(2**62, ())


@torch.library.custom_op("automodel_peft::seeded_dropout", mutates_args=())
def seeded_dropout(x: torch.Tensor, seed: torch.Tensor, probability: float) -> torch.Tensor:
    """`x` with elements set to zero at random, the others scaled by 1 / (1 - probability).

    It is linear in `x`, and its own transpose: the backward pass applies it to the gradient.

    Args:
        x: Any shape.
        seed: What `draw_seed` gave; the same seed, shape and device give the same mask.
        probability: Of an element to be dropped.
    """
    generator = torch.Generator(x.device).manual_seed(int(seed))
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kept.bernoulli_(1.0 - probability, generator=generator)
    return kept.mul_(x).div_(1.0 - probability)


@seeded_dropout.register_fake
def _(x: torch.Tensor, seed: torch.Tensor, probability: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
