"""How an adapted linear layer computes: what the YAML demands, or what measured fastest."""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

import torch

LARGEST_RANK = 256


def chosen_method(
    use_triton: bool | Literal["auto"], features_in: int, features_out: int, rank: int
) -> str:
    """`plain` (`low_rank.add_low_rank`) or one of `lean_linear.METHODS`."""
    if use_triton is True:
        return "triton"
    if use_triton is False or without_triton() or rank > LARGEST_RANK:
        return "plain"
    return fastest(features_in, features_out, rank)


def fastest(features_in: int, features_out: int, rank: int) -> str:
    """By the table of `benchmarks/lora.py`, whose rows are all to agree with it."""
    return "plain"  # until a GPU has measured the others


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
