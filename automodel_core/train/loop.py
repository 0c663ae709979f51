"""The training loop. A step is an optimizer step: all its micro-batches are fetched first, so that
its supervised tokens are counted before the first backward."""

from __future__ import annotations

import time

import attrs
import torch

from automodel_core.train.due import save_due, validation_due, validation_owed
from automodel_core.train.metrics import StepMetrics, peak_memory_gib
from automodel_core.train.run import Run
from automodel_core.train.saving import save, saved_after_signal
from automodel_core.train.schedule import learning_rate
from automodel_core.train.signals import stop_on_signals
from automodel_core.train.step import MicroBatch, accumulate_gradients, prepare_micro_batch
from automodel_core.train.validating import validate


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
