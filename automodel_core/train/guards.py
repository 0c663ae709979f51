"""Faults that would waste or spoil a run, each with a name and a switch in the `guards:` section.

A guard that stops the run raises GuardStop (exit code 3) and says what to do; one that warns prints
one line, once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import attrs
import torch
from torch.distributed.tensor import DTensor

from automodel_core.config.schema import GuardSettings
from automodel_core.errors import GuardStop
from automodel_core.protocols import Adapter
from automodel_core.train.clipping import scales_gradients
from automodel_core.train.metrics import StepMetrics
from automodel_core.train.order import Layout

# A spike stands this far above the median of the recent losses: at least so many nats, and so many
# times their noise. That is measured from one loss to the next (von Neumann et al. 1941), so that a
# loss which falls steadily isn't taken for a noisy one, and by a median, so that a spike hides no
# other (Hampel 1974).
SPIKE_NATS, SPIKE_DEVIATIONS, SPIKE_MEMORY, SPIKE_AFTER = 1.0, 10.0, 20, 10

# So many sample numbers are listed for a step that went wrong.
SAMPLES_SHOWN = 16

# Of the elements whose gradient isn't zero, this share may stay where it is.
LOST_SHARE, LOST_EVERY, LOST_SAMPLE = 0.5, 50, 2**16

# By this step an adapter has changed, warm-up and the first skipped steps of float16 included.
ADAPTER_STEP = 20


def check_trainable(model: torch.nn.Module) -> int:
    """nothing_trainable: at least one parameter must require a gradient. Returns their number."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trainable:
        raise GuardStop("nothing_trainable", "No parameter of the model requires a gradient.")
    return trainable


def check_supervision(step: int, label_tokens: float) -> None:
    """no_supervised_tokens: a step whose labels are all masked has nothing to learn from."""
    if not label_tokens:
        raise GuardStop(
            "no_supervised_tokens",
            f"Step {step} has no supervised token: every label of its samples is masked.",
            fix="check that the answers are not empty and not cut off by max_length",
        )


def non_finite(metrics: StepMetrics, samples: Sequence[int], at_fault: str) -> str | None:
    """What is NaN or infinite in a step, the samples that it was taken on, and on which ranks."""
    for name, value in (("loss", metrics.loss), ("gradient norm", metrics.grad_norm)):
        if not math.isfinite(value):
            listed = ", ".join(map(str, samples[:SAMPLES_SHOWN]))
            more = ", ..." if len(samples) > SAMPLES_SHOWN else ""
            where = f", on {at_fault}" if at_fault else ""
            return (
                f"The {name} of step {metrics.step} is {value}{where}. Its samples: {listed}{more}."
            )
    return None


@attrs.define
class SpikeDetector:
    """loss_spike: a loss far above those before it, by their own noise."""

    recent: deque[float] = attrs.field(factory=lambda: deque(maxlen=SPIKE_MEMORY))

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` stands out; it is remembered either way."""
        spike = False
        if len(self.recent) >= SPIKE_AFTER:
            # 1.4826 makes a median distance a standard deviation; a difference holds two noises.
            noise = 1.4826 / 2**0.5 * median(abs(b - a) for a, b in pairwise(self.recent))
            spike = loss > median(self.recent) + max(SPIKE_NATS, SPIKE_DEVIATIONS * noise)
        self.recent.append(loss)
        return spike


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Some elements of what this rank holds of a tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.flatten()[:LOST_SAMPLE]


@attrs.define
class LostUpdates:
    """lost_updates: the share of weights whose update is rounded away by their own precision.

    A bfloat16 weight keeps 8 significant bits: an update smaller than 1/512 of it changes nothing.
    Looks at a sample of the elements of every trainable parameter, every 50 steps.
    """

    parameters: list[torch.nn.Parameter]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> LostUpdates:
        """Only parameters in less than float32 can lose updates in this way; with an optimizer that
        rounds at random, what stays in one step moves in another."""
        if getattr(optimizer, "rounds_stochastically", False):
            return cls([])
        low = (torch.bfloat16, torch.float16)
        groups = optimizer.param_groups
        return cls([p for group in groups for p in group["params"] if p.dtype in low])

    def due(self, step: int) -> bool:
        return bool(self.parameters) and step % LOST_EVERY == 1

    def measure(self, take_step: Callable[[], None]) -> torch.Tensor:
        """Take the optimizer step; the share of sampled elements with a gradient left unmoved, a
        scalar on the device. Of a sharded model, this rank's part is looked at."""
        before = [
            (p, sampled(p.detach()).clone(), sampled(p.grad) != 0)
            for p in self.parameters
            if p.grad is not None
        ]
        take_step()
        moved = torch.stack([((sampled(p.detach()) != old) & has).sum() for p, old, has in before])
        eligible = torch.stack([has.sum() for _, _, has in before])
        return 1.0 - moved.sum() / eligible.sum().clamp(min=1)


def step_if_finite(optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor) -> None:
    """Take an optimizer step unless the gradient is NaN or infinite.

    Fused optimizers decide on the device, as they do for `torch.amp.GradScaler`; for others the
    host must wait for the gradient's norm.
    """
    finite = torch.isfinite(grad_norm)
    if scales_gradients(optimizer):
        optimizer.found_inf = (~finite).float()
        optimizer.step()
        del optimizer.found_inf
    elif finite:
        optimizer.step()


@attrs.define
class Guards:
    """The guards of a run, as its settings switch them.

    Attributes:
        warn: Prints a line.
        loss_scaling: The scaler skips steps whose gradients overflow, which is how it finds its
            scale; only a loss that isn't finite is a fault then.
        batch_is_chosen: The YAML has a global_batch_size.
    """

    settings: GuardSettings
    warn: Callable[[str], None]
    lost_updates: LostUpdates
    loss_scaling: bool = False
    batch_is_chosen: bool = False
    spikes: SpikeDetector = attrs.field(factory=SpikeDetector)
    _lost_shares: dict[int, torch.Tensor] = attrs.field(factory=dict)
    _warned: set[str] = attrs.field(factory=set)

    def before_step(self, step: int, label_tokens: float) -> None:
        """What can be seen before the forward pass: the supervised tokens of all ranks."""
        if self.settings.no_supervised_tokens == "stop":
            check_supervision(step, label_tokens)

    def take_step(
        self,
        step: int,
        grad_norm: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Take the optimizer step, and now and then measure what it changed."""

        def optimizer_step() -> None:
            if self.settings.non_finite == "skip" and not scaler.is_enabled():
                step_if_finite(optimizer, grad_norm)
            else:
                scaler.step(optimizer)
                scaler.update()

        if self.settings.lost_updates == "off" or not self.lost_updates.due(step):
            optimizer_step()
        else:
            self._lost_shares[step] = self.lost_updates.measure(optimizer_step)

    def after_step(self, metrics: StepMetrics, samples: Sequence[int], at_fault: str = "") -> None:
        """What the results of a step show.

        Args:
            metrics: The step's.
            samples: The numbers of its samples in the data set.
            at_fault: The ranks whose loss isn't finite, where others' is.
        """
        overflow = self.loss_scaling and math.isfinite(metrics.loss)
        watched = self.settings.non_finite != "off" and not overflow
        fault = non_finite(metrics, samples, at_fault) if watched else None
        if fault and self.settings.non_finite == "stop":
            raise GuardStop(
                "non_finite",
                f"{fault} Nothing was saved after it.",
                fix="resume from the last checkpoint with a smaller lr or a longer warm-up",
            )
        if fault:
            self.warn(f"guard non_finite: {fault} The step is skipped.")
            return
        share = float(self._lost_shares.pop(metrics.step, 0.0))
        if share > LOST_SHARE:
            self.once(
                "lost_updates",
                f"{share:.0%} of the weights with a gradient did not change in step "
                f"{metrics.step}: their updates are smaller than the precision of the weights. "
                "Write torch_dtype: auto (float32 master weights), optimizer._target_: "
                "stochastic_adamw (random rounding), or raise lr.",
            )
        if self.settings.loss_spike != "off" and self.spikes.is_spike(metrics.loss):
            message = f"The loss of step {metrics.step} jumped to {metrics.loss:.3f}."
            if self.settings.loss_spike == "stop":
                raise GuardStop("loss_spike", message, fix="lower lr, or look at that step's data")
            self.once("loss_spike", message)

    def batch(self, layout: Layout, before: int | None = None) -> None:
        """effective_batch: a step's samples are what batch_size and grad_acc_steps say.

        Args:
            layout: How a step's samples are spread.
            before: Samples in a step of the run that this one goes on from.
        """
        if self.settings.effective_batch == "off":
            return
        parts = f"{layout.micro_batch} batch_size x {layout.grad_acc_steps} grad_acc_steps"
        how = f"{parts} x {layout.ranks} ranks = {layout.group} samples"
        fix = f"Write step_scheduler.global_batch_size: {before or layout.group} to keep it."
        if before is not None and before != layout.group:
            self.once("effective_batch", f"A step takes {how}; before, it took {before}. {fix}")
        elif before is None and layout.ranks > 1 and not self.batch_is_chosen:
            self.once("effective_batch", f"A step takes {how}. {fix}")

    def adapter(self, adapter: Adapter, model: torch.nn.Module) -> None:
        """adapter_unchanged, and whatever else the adapter finds, which always stops the run."""
        try:
            adapter.check(model)
        except GuardStop as found:
            switchable = found.guard == "adapter_unchanged"
            does = self.settings.adapter_unchanged if switchable else "stop"
            if does == "stop":
                raise
            if does == "warn":
                self.once(found.guard, " ".join(filter(None, [found.message, found.fix])))

    def state_dict(self) -> dict[str, Any]:
        """What the guards remember, for a run that goes on."""
        return {"losses": list(self.spikes.recent), "warned": sorted(self._warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spikes.recent.extend(state["losses"])
        self._warned.update(state["warned"])

    def once(self, guard: str, message: str) -> None:
        """Warn the first time that a guard fires."""
        if guard not in self._warned:
            self._warned.add(guard)
            self.warn(f"guard {guard}: {message}")
