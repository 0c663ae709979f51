"""What a step measured, read when it has arrived.

A device works behind the host that feeds it. Asking it for a loss makes the host wait until it has
caught up, and then the device for the host. So figures are copied without waiting, and read at most
LATE steps later; before the run validates, saves or ends they are all read.
"""

from __future__ import annotations

import time

import attrs
import torch

from automodel_core.train.metrics import StepMetrics, peak_memory_gib

LATE = 8


class StepClock:
    """The duration of a step where it is computed; starts when made."""

    def __init__(self, device: torch.device) -> None:
        self._events = (
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            if device.type == "cuda"
            else None
        )
        if self._events:
            self._events[0].record()
        self._started = self._stopped = time.perf_counter()

    def stop(self) -> None:
        """The step's work has all been asked for."""
        if self._events:
            self._events[1].record()
        else:
            self._stopped = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the device has finished the step."""
        return self._events is None or self._events[1].query()

    def seconds(self) -> float:
        """Waits for the device if it must."""
        if self._events is None:
            return self._stopped - self._started
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000

    def since(self, before: StepClock) -> float:
        """From the end of an earlier step to the end of this one, in seconds; waits if it must."""
        if self._events is None:
            return self._stopped - before._stopped
        self._events[1].synchronize()
        return before._events[1].elapsed_time(self._events[1]) / 1000


@attrs.frozen(kw_only=True)
class Reading:
    """A step that has been asked of the device; see `StepMetrics` for what isn't listed.

    Attributes:
        values: The gradient norm and what `World.loss_on_device` tells, on their way to the host.
        samples: The numbers of the step's samples, over all ranks.
        learned_by_source: Supervised tokens over all ranks by source, for data that is mixed.
        device: Where the step is computed.
        clock: The step's duration; it stops after `values` have been copied.
    """

    step: int
    epoch: int
    lr: float
    num_label_tokens: int
    num_tokens: int
    packing_efficiency: float
    learned_by_source: dict[str, int]
    data_seconds: float
    recompiles: int
    values: torch.Tensor
    samples: list[int]
    device: torch.device
    clock: StepClock

    @property
    def done(self) -> bool:
        return self.clock.done

    def at_fault(self, ranks: int) -> str:
        """Which of several ranks have a loss that isn't finite; empty if none or all have."""
        if ranks == 1:
            return ""
        _, _, count, numbers = self.values.tolist()
        if not 0 < count < ranks:
            return ""
        return f"rank {numbers:.0f}" if count == 1 else f"{count:.0f} of {ranks} ranks"

    def metrics(self) -> StepMetrics:
        """The step's figures; waits for the device if it must."""
        seconds = self.clock.seconds()
        grad_norm, loss, *_ = self.values.tolist()
        return StepMetrics(
            step=self.step,
            epoch=self.epoch,
            loss=loss,
            grad_norm=grad_norm,
            lr=self.lr,
            num_label_tokens=self.num_label_tokens,
            num_tokens=self.num_tokens,
            packing_efficiency=self.packing_efficiency,
            tps=self.num_label_tokens / seconds,
            memory_gib=peak_memory_gib(self.device),
            seconds=seconds,
            data_seconds=self.data_seconds,
            recompiles=self.recompiles,
        )


def to_host(values: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, without waiting for it."""
    if values.device.type == "cpu":
        return values
    pinned = torch.empty_like(values, device="cpu", pin_memory=True)
    return pinned.copy_(values, non_blocking=True)
