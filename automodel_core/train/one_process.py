"""The parallel manager of a run in one process whose YAML names none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, TypeVar

import torch

from automodel_core.gradients import clip_to, squared_norm
from automodel_core.protocols import Precision, Sizes

T = TypeVar("T")


class OneProcess:
    """Leaves everything as it is; see `ParallelManager`."""

    sequence_multiple: ClassVar[int] = 1
    before_weights: ClassVar[bool] = False
    offloads: ClassVar[bool] = False

    def sizes(self, world_size: int) -> Sizes:
        return Sizes(dp_replicate=world_size, dp_shard=1, cp=1, tp=1)

    def parallelize(
        self, model: torch.nn.Module, mesh: None, precision: Precision
    ) -> torch.nn.Module:
        return model

    def one_pass(self, model: torch.nn.Module, compute: Callable[..., T]) -> Callable[..., T]:
        return compute

    def gradient_divisor(self, mesh: None) -> int:
        return 1

    def micro_batch(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def clip(
        self, parameters: Iterable[torch.nn.Parameter], max_norm: float | None
    ) -> torch.Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = squared_norm(gradients).sqrt() if gradients else torch.zeros(())
        if gradients and max_norm is not None:
            clip_to(gradients, max_norm, norm)
        return norm
