"""The training loop. A step is an optimizer step: all its micro-batches are fetched first, so that
its supervised tokens are counted before the first backward."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import pluggy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.config.schema import RunConfig
from automodel_core.errors import SavedAfterSignal
from automodel_core.protocols import StatefulRNG
from automodel_core.train.checkpoint import CheckpointWriter
from automodel_core.train.console import Console
from automodel_core.train.data import TrainingData, ValidationData
from automodel_core.train.guards import Guards
from automodel_core.train.jsonl import JsonLines
from automodel_core.train.loggers import Loggers
from automodel_core.train.metrics import StepMetrics, peak_memory_gib
from automodel_core.train.schedule import Horizon, learning_rate
from automodel_core.train.signals import stop_on_signals
from automodel_core.train.state import (
    load_optimizer_tensors,
    optimizer_tensors,
    save_model,
    save_training_state,
    staged_weights,
)
from automodel_core.train.step import (
    MicroBatch,
    Objective,
    accumulate_gradients,
    evaluate,
    prepare_micro_batch,
)


@attrs.define(kw_only=True)
class Run:
    """Everything that a run in progress holds.

    Attributes:
        step: Optimizer steps done.
        ended_early: Early stopping has ended the run before its horizon.
        peak_lr: Learning rate of each parameter group before the schedule.
        seconds: Time spent so far, by phase.
        label_tokens: Supervised tokens trained on so far.
    """

    config: RunConfig
    folder: Path
    effective_yaml: str
    manifest: dict[str, Any]
    console: Console
    hooks: pluggy.HookRelay
    loggers: Loggers
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rng: StatefulRNG
    guards: Guards
    writer: CheckpointWriter
    data: TrainingData
    validation: dict[str, ValidationData]
    horizon: Horizon
    peak_lr: list[float]
    step: int = 0
    ended_early: bool = False
    seconds: dict[str, float] = attrs.field(
        factory=lambda: {"train": 0.0, "validate": 0.0, "save": 0.0}
    )
    label_tokens: int = 0

    @property
    def finished(self) -> bool:
        return self.ended_early or self.step >= self.horizon.total_steps

    @property
    def training_log(self) -> JsonLines:
        return JsonLines(self.folder / "training.jsonl")

    @property
    def validation_log(self) -> JsonLines:
        return JsonLines(self.folder / "validation.jsonl")


def train(run: Run) -> None:
    """From `run.step` to the end of the horizon, validating and saving on the way.

    Raises:
        GuardStop: A guard fired; nothing is saved after the step at fault.
        SavedAfterSignal: A signal asked the run to stop; it was saved first.
    """
    run.model.train()
    with stop_on_signals() as stop, run.console.training(run.step, run.horizon.total_steps):
        if validation_owed(run):
            validate(run)
        while not run.finished:
            metrics = optimizer_step(run)
            run.guards.after_step(metrics, run.data.last_samples)
            report(run, metrics)
            if stop:
                raise saved_after_signal(run, stop.signal_name)
            if validation_due(run):
                validate(run)
            if save_due(run):
                save(run)
            run.writer.poll()
        run.writer.settle()


def optimizer_step(run: Run) -> StepMetrics:
    """Fetch a whole step's micro-batches, forward and backward, clip, and step."""
    started = time.perf_counter()
    epoch, batches = run.data.next_step()
    waited = time.perf_counter() - started
    micro_batches = [prepare_micro_batch(batch, run.objective.device) for batch in batches]
    run.guards.before_step(run.step + 1, micro_batches)

    rates = set_learning_rates(run)
    loss = accumulate_gradients(run.objective, micro_batches, run.scaler)
    grad_norm = clip_gradients(run)
    run.guards.take_step(run.step + 1, grad_norm, lambda: run.scaler.step(run.optimizer))
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.data.advance()

    loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()
    return measured(run, epoch, micro_batches, (loss_value, norm_value, rates[0]), started, waited)


def measured(
    run: Run,
    epoch: int,
    micro_batches: list[MicroBatch],
    values: tuple[float, float, float],
    started: float,
    waited: float,
) -> StepMetrics:
    """The step's figures; its time is taken after its results were read from the device."""
    loss, grad_norm, lr = values
    seconds = time.perf_counter() - started
    label_tokens = sum(micro_batch.label_tokens for micro_batch in micro_batches)
    run.seconds["train"] += seconds
    run.label_tokens += label_tokens
    return StepMetrics(
        step=run.step,
        epoch=epoch,
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        num_label_tokens=label_tokens,
        num_tokens=sum(micro_batch.tokens for micro_batch in micro_batches),
        tps=label_tokens / seconds,
        memory_gib=peak_memory_gib(run.objective.device),
        seconds=seconds,
        data_seconds=waited,
    )


def report(run: Run, metrics: StepMetrics) -> None:
    """To the log, the terminal, the loggers and the observers."""
    record = attrs.asdict(metrics)
    run.training_log.append(record)
    run.console.step(metrics)
    run.loggers.log_step(run.step, record)
    run.hooks.automodel_step_end(folder=run.folder, step=run.step, metrics=record)


def set_learning_rates(run: Run) -> list[float]:
    """Give every parameter group the rate of the step about to be taken."""
    schedule, total = run.config.lr_scheduler, run.horizon.total_steps
    rates = [learning_rate(run.step + 1, peak, schedule, total) for peak in run.peak_lr]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return rates


def clip_gradients(run: Run) -> torch.Tensor:
    """Unscale, measure the norm of all gradients together, and clip it if the YAML says so."""
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    limit = run.config.clip_grad_norm
    if limit is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters])
    return torch.nn.utils.clip_grad_norm_(parameters, limit)


def due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


def save_due(run: Run) -> bool:
    """Every `save_every_steps`, and at the end."""
    if not run.config.checkpoint.enabled:
        return False
    return run.finished or due(run.step, run.config.checkpoint.save_every_steps)


def validation_due(run: Run) -> bool:
    """Every `val_every_steps`; if it is left out, before each checkpoint. Always at the end."""
    if not run.validation:
        return False
    every = run.config.step_scheduler.val_every_steps
    return run.finished or (due(run.step, every) if every else save_due(run))


def validation_owed(run: Run) -> bool:
    """Whether a signal stopped the run between its last step and that step's validation."""
    done = {record["step"] for record in run.validation_log.read()}
    return run.step > 0 and validation_due(run) and run.step not in done


def validate(run: Run) -> None:
    """The mean token loss over each whole validation set, however it is batched."""
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    run.model.eval()
    for name, data in run.validation.items():
        batches = (prepare_micro_batch(b, run.objective.device) for b in data.batches())
        loss, label_tokens = evaluate(run.objective, batches)
        prefix = f"{name}/" if name else ""
        metrics |= {f"{prefix}loss": loss, f"{prefix}num_label_tokens": label_tokens}
        run.console.validation(run.step, name, loss)
    run.model.train()
    seconds = time.perf_counter() - started
    run.seconds["validate"] += seconds
    record = {"step": run.step, **metrics, "seconds": seconds}
    run.validation_log.append(record)
    run.loggers.log_validation(run.step, record)
    run.hooks.automodel_validation_end(folder=run.folder, step=run.step, metrics=record)
    run.ended_early = no_longer_improving(run)


def no_longer_improving(run: Run) -> bool:
    """Whether `early_stopping` ends the run: read from the log, so that a resumed run agrees."""
    rule = run.config.early_stopping
    if rule is None:
        return False
    values = [record[rule.metric] for record in run.validation_log.read()]
    return len(values) > rule.patience and min(values[-rule.patience :]) >= min(
        values[: -rule.patience]
    )


def save(run: Run) -> Path:
    """Write a checkpoint of the state after `run.step`; everything it holds is copied first."""
    started = time.perf_counter()
    target = run.folder / f"epoch_{run.data.last_epoch}_step_{run.step}"
    weights = staged_weights(run.model)
    tensors = optimizer_tensors(run.optimizer, run.model)
    state = training_state(run)

    def fill(folder: Path) -> None:
        save_format = run.config.checkpoint.model_save_format
        save_model(folder / "model", run.model, weights, run.tokenizer, save_format)
        save_training_state(folder / "training", tensors, state)
        (folder / "config.yaml").write_text(run.effective_yaml)

    run.writer.write(target, fill, {**run.manifest, "metrics": metrics_at(run)})
    run.seconds["save"] += time.perf_counter() - started
    return target


def metrics_at(run: Run) -> dict[str, float]:
    """The validation metrics of exactly this step, if there are any."""
    records = run.validation_log.read()
    return records[-1] if records and records[-1]["step"] == run.step else {}


def training_state(run: Run) -> dict[str, Any]:
    """What exact resumption needs besides the tensors."""
    return {
        "step": run.step,
        "label_tokens": run.label_tokens,
        "data": run.data.state_dict(),
        "rng": run.rng.state_dict(),
        "scaler": run.scaler.state_dict(),
        "seconds": run.seconds,
    }


def restore(run: Run, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Stand where the checkpoint stood; later lines of the logs are taken back."""
    load_optimizer_tensors(run.optimizer, run.model, tensors)
    run.step, run.label_tokens, run.seconds = state["step"], state["label_tokens"], state["seconds"]
    run.data.load_state_dict(state["data"])
    run.scaler.load_state_dict(state["scaler"])
    run.rng.load_state_dict(state["rng"])
    forget_later_lines(run)
    run.ended_early = no_longer_improving(run)


def forget_later_lines(run: Run) -> None:
    """Take back what an earlier attempt logged after this step: it is done again."""
    run.training_log.forget_after(run.step)
    run.validation_log.forget_after(run.step)


def saved_after_signal(run: Run, signal_name: str | None) -> SavedAfterSignal:
    """Save if the YAML saves at all, and say how to go on."""
    if not run.config.checkpoint.enabled:
        return SavedAfterSignal(
            f"Stopped by {signal_name} after step {run.step}; nothing is saved "
            "because checkpoint.enabled is false."
        )
    target = save(run)
    run.writer.settle()
    return SavedAfterSignal(
        f"Stopped by {signal_name} after step {run.step} and saved {target}.\n"
        "Run the same command again to go on from there."
    )
