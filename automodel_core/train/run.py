"""The record of a run in progress."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import pluggy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from automodel_core.config.schema import RunConfig
from automodel_core.protocols import Adapter, StatefulRNG
from automodel_core.train.checkpoint import CheckpointWriter
from automodel_core.train.compiling import Compilation
from automodel_core.train.console import Console
from automodel_core.train.data import TrainingData, ValidationData
from automodel_core.train.guards import Guards
from automodel_core.train.jsonl import JsonLines
from automodel_core.train.loggers import Loggers
from automodel_core.train.readings import Reading
from automodel_core.train.schedule import Horizon
from automodel_core.train.step import Objective
from automodel_core.train.stream_data import StreamData, StreamValidation
from automodel_core.train.world import World


@attrs.define(kw_only=True, slots=False)
class Run:
    """Everything that a run in progress holds.

    Attributes:
        sharded_saves: Whether every rank can write its part of the weights.
        step: Optimizer steps done.
        ended_early: Early stopping has ended the run before its horizon.
        stop_agreed: A signal to some rank; all ranks know of it since the same step.
        peak_lr: Learning rate of each parameter group before the schedule.
        seconds: Time spent so far, by phase.
        seconds: Of each phase, and within training the wait for data.
        label_tokens: Supervised tokens trained on so far.
        validations: The lines of `validation.jsonl`, which only rank 0 writes.
        readings: Steps asked of the device whose figures haven't been read.
    """

    config: RunConfig
    world: World
    folder: Path
    effective_yaml: str
    manifest: dict[str, Any]
    console: Console
    hooks: pluggy.HookRelay
    loggers: Loggers
    model: PreTrainedModel
    sharded_saves: bool
    adapter: Adapter | None
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    objective: Objective
    compilation: Compilation
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rng: StatefulRNG
    guards: Guards
    writer: CheckpointWriter
    data: TrainingData | StreamData
    validation: dict[str, ValidationData | StreamValidation]
    horizon: Horizon
    peak_lr: list[float]
    step: int = 0
    ended_early: bool = False
    stop_agreed: bool = False
    seconds: dict[str, float] = attrs.field(
        factory=lambda: {"train": 0.0, "validate": 0.0, "save": 0.0}
    )
    label_tokens: int = 0
    validations: list[dict[str, Any]] = attrs.field(factory=list)
    readings: deque[Reading] = attrs.field(factory=deque)

    @property
    def finished(self) -> bool:
        total = self.horizon.total_steps
        return self.ended_early or self.data.ended or (total is not None and self.step >= total)

    @cached_property
    def training_log(self) -> JsonLines:
        return JsonLines(self.folder / "training.jsonl")

    @cached_property
    def validation_log(self) -> JsonLines:
        return JsonLines(self.folder / "validation.jsonl")
