"""Faults that would waste or spoil a run, each with a name. A guard that fires stops the run with
exit code 3 and says what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from automodel_core.errors import GuardStop
from automodel_core.train.metrics import StepMetrics
from automodel_core.train.step import MicroBatch


def check_trainable(model: torch.nn.Module) -> int:
    """nothing_trainable: at least one parameter must require a gradient. Returns their number."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trainable:
        raise GuardStop("nothing_trainable", "No parameter of the model requires a gradient.")
    return trainable


def check_supervision(step: int, micro_batches: Sequence[MicroBatch]) -> None:
    """no_supervised_tokens: a step whose labels are all masked has nothing to learn from."""
    if not any(micro_batch.label_tokens for micro_batch in micro_batches):
        raise GuardStop(
            "no_supervised_tokens",
            f"Step {step} has no supervised token: every label of its samples is masked.",
            fix="check that the answers are not empty and not cut off by max_length",
        )


def check_finite(metrics: StepMetrics) -> None:
    """non_finite: a loss or gradient that is NaN or infinite has spoilt the weights."""
    for name, value in (("loss", metrics.loss), ("gradient norm", metrics.grad_norm)):
        if not math.isfinite(value):
            raise GuardStop(
                "non_finite",
                f"The {name} of step {metrics.step} is {value}. Nothing was saved after it.",
                fix="resume from the last checkpoint with a smaller lr or a longer warm-up",
            )
