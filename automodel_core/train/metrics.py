"""What a run measures: one JSON object per optimizer step, one per validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        tps: Supervised tokens per second.
        memory_gib: Peak memory so far: of the GPU's allocator, or of the process on the CPU.
        seconds: The step's duration, waiting for data included.
        data_seconds: The part of it spent waiting for data.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    num_label_tokens: int
    num_tokens: int
    tps: float
    memory_gib: float
    seconds: float
    data_seconds: float


class JsonLines:
    """A file of one JSON object a line, each with a `step`, that survives being resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; one cut off by a crash is left out."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def forget_after(self, step: int) -> None:
        """Drop what came after `step`: a resumed run takes those steps again."""
        kept = [record for record in self.read() if record["step"] <= step]
        aside = self.path.with_suffix(".new")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        aside.replace(self.path)


def peak_memory_gib(device: torch.device) -> float:
    """The GPU allocator's peak, or the process's largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
