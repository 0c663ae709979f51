"""How an adapted linear layer computes: what the YAML demands, or what measured fastest."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import nn

from automodel_core.errors import UserError

LARGEST_RANK = 256

# What layers were measured in: bfloat16, and float16 is as fast.
MEASURED = (torch.bfloat16, torch.float16)

# Triton's interpreter runs kernels on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The largest rank at which reading dy once repays writing its product in more parts; and the
# narrowest layer that gains from kernels more than launching them costs.
ONCE, WIDE = 32, 4096


def chosen_method(use_triton: bool | Literal["auto"], module: nn.Module, rank: int) -> str:
    """`plain` (`low_rank.add_low_rank`) or one of `lean_linear.METHODS`.

    Raises:
        UserError: The kernels are demanded, and there are none for that layer.
    """
    if use_triton is False:
        return "plain"
    reason = ""
    if type(module).forward is not nn.Linear.forward:
        reason = f"a {type(module).__name__} has a product of its own"
    elif rank > LARGEST_RANK:
        reason = f"they go up to rank {LARGEST_RANK}, and an update has {rank}"
    if use_triton is True:
        if reason:
            raise refused(reason)
        return "triton_once" if rank <= ONCE else "triton"
    # float32 weights weren't measured: they train slowly, or under autocast, which needs `plain`.
    if reason or module.weight.dtype not in MEASURED or without_triton():
        return "plain"
    return fastest(module.in_features, module.out_features, rank)


def refused(reason: str) -> UserError:
    """Of `use_triton: true`."""
    return UserError(
        f"use_triton: true demands Triton's kernels for the adapters, but {reason}.",
        fix="leave it out, or add peft.use_triton=false to the command line",
        argument="use_triton",
    )


def fastest(features_in: int, features_out: int, rank: int) -> str:
    """By the tables of docs/benchmarks/lora.md: on an H100, in 33 of 34 rows within 1%."""
    if min(features_in, features_out) < WIDE:
        return "lean"
    return "triton_once" if rank <= ONCE else "triton_add"


@functools.cache
def without_triton() -> str:
    """Why Triton's kernels can't be used on this machine; empty if they can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton isn't installed"
    if torch.version.hip is not None or torch.cuda.get_device_capability() < (8, 0):
        return "they are for NVIDIA GPUs from Ampere (compute capability 8.0) on"
    return ""
