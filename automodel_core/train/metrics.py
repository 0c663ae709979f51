"""What a run measures in each optimizer step."""

from __future__ import annotations

import sys

import attrs
import torch


@attrs.frozen
class StepMetrics:
    """One optimizer step, as `training.jsonl` and every logger receive it.

    Attributes:
        step: 1 is the first.
        epoch: 0 is the first.
        loss: Mean over the step's supervised tokens.
        grad_norm: Of all gradients together, before clipping.
        lr: The learning rate the step was taken with.
        num_label_tokens: Supervised tokens in the step.
        num_tokens: Real tokens in the step, supervised or not.
        packing_efficiency: The part of the rows that these fill; the rest is padding.
        tps: Supervised tokens per second.
        memory_gib: Peak memory so far: of the GPU's allocator, or of the process on the CPU.
        seconds: The step's duration, waiting for data included.
        data_seconds: The part of it spent waiting for data.
        recompiles: Pieces of code compiled since the first step, so far.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    num_label_tokens: int
    num_tokens: int
    packing_efficiency: float
    tps: float
    memory_gib: float
    seconds: float
    data_seconds: float
    recompiles: int


def peak_memory_gib(device: torch.device) -> float:
    """The GPU allocator's peak, or the process's largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
