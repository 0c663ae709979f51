"""AdamW with 8 bits for each running mean instead of 16 or 32, by torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

from automodel_core.errors import UserError


def adamw_8bit(
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    block_size: int = 256,
) -> torch.optim.Optimizer:
    """AdamW whose means are stored in 8 bits, quantized block by block (Dettmers et al. 2022,
    https://arxiv.org/abs/2110.02861); an update itself is computed in float32.

    Parameters below 4,096 numbers, or that don't split into blocks, keep their means in their own
    dtype. Needs the package `torchao`.

    Args:
        params: Parameters or groups of them, whole on each rank.
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second mean.
        weight_decay: Share of each weight that a step of rate 1 takes away.
        block_size: Numbers that share a scale.

    Raises:
        UserError: torchao isn't installed.
        ValueError: A value is out of its range, or a parameter is cut over ranks.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "adamw_8bit needs torchao, which isn't installed.",
            fix="pip install torchao, or write _target_: adamw",
            argument="_target_",
        )
    from automodel_optimizers.torchao_adamw import AdamW8bit

    return AdamW8bit(
        params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, block_size=block_size
    )
