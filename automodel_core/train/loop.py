"""The training loop. A step is an optimizer step: all its micro-batches are fetched first, so that
its supervised tokens are counted before the first backward."""

from __future__ import annotations

import time

import attrs
import torch

from automodel_core.randomness import remember_randomness
from automodel_core.train.clipping import clipped_update, scales_gradients
from automodel_core.train.due import save_due, validation_due, validation_owed
from automodel_core.train.guards import ADAPTER_STEP
from automodel_core.train.readings import LATE, Reading, StepClock, to_host
from automodel_core.train.run import Run
from automodel_core.train.saving import amend_metrics, save, saved_after_signal
from automodel_core.train.schedule import learning_rate
from automodel_core.train.signals import Dropped, StopRequest
from automodel_core.train.step import accumulate_gradients
from automodel_core.train.validating import validate


def train(run: Run, stop: StopRequest) -> None:
    """From `run.step` to the end of the horizon, validating and saving on the way.

    Raises:
        GuardStop: A guard fired; nothing is saved after the step at fault.
        SavedAfterSignal: A signal asked the run to stop; it was saved first.
    """
    run.model.train()
    with run.console.training(run.step, run.horizon.total_steps):
        try:
            stop.patient, stop.alone = True, run.world.alone
            take_steps(run, stop)
        except Dropped:
            report(run, late=0)
        if asked_to_stop(run, stop):
            raise saved_after_signal(run, stop.signal_name)
        run.writer.settle()
        stop.patient = False


def take_steps(run: Run, stop: StopRequest) -> None:
    """Until the run is finished or asked to stop."""
    if validation_owed(run):
        with stop.droppable():
            validate(run)
        amend_metrics(run)
    while not (run.finished or asked_to_stop(run, stop)):
        run.readings.append(optimizer_step(run, stop))
        due = validation_due(run) or save_due(run) or run.step == ADAPTER_STEP
        pausing = stop or run.finished or due
        report(run, late=0 if pausing else LATE)
        if run.adapter is not None and run.step == ADAPTER_STEP:
            run.guards.adapter(run.adapter, run.model)
        if validation_due(run) and not asked_to_stop(run, stop):
            with stop.droppable():
                validate(run)
        if save_due(run) and not asked_to_stop(run, stop):
            save(run)
        run.writer.poll()


def asked_to_stop(run: Run, stop: StopRequest) -> bool:
    """Whether this rank is to stop; ranks agree on it with the tokens of a step."""
    return bool(stop) if run.world.alone else run.stop_agreed


def optimizer_step(run: Run, stop: StopRequest) -> Reading:
    """One step; nothing in it waits for the device.

    Raises:
        Dropped: At a second signal; the run stands where it stood before.
    """
    restore_randomness = remember_randomness()
    try:
        with stop.droppable():
            reading, grad_norm = gradients(run, stop)
    except Dropped:
        run.optimizer.zero_grad(set_to_none=True)
        restore_randomness()
        raise
    with clipped_update(run.optimizer, grad_norm, run.config.clip_grad_norm):
        run.guards.take_step(run.step + 1, grad_norm, run.optimizer, run.scaler)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.data.advance()
    reading.clock.stop()
    run.compilation.step_done()
    return reading


def gradients(run: Run, stop: StopRequest) -> tuple[Reading, torch.Tensor]:
    """Fetch a whole step's micro-batches, forward and backward, and clip unless the update does.

    Returns:
        What was measured, and the norm of the gradients before clipping, on the device.
    """
    device, world = run.objective.device, run.world
    clock, started = StepClock(device), time.perf_counter()
    data = run.data.next_step()
    waited = time.perf_counter() - started
    micro_batches = [run.objective.prepare(batch) for batch in data.batches]
    label_tokens, tokens, slots, stopping, *by_source = world.sum(
        [
            sum(each.label_tokens for each in micro_batches),
            sum(each.tokens for each, filled in zip(micro_batches, data.filled, strict=True)
                if not filled),
            sum(each.labels.numel() for each in micro_batches),
            bool(stop),
            *data.learned_by_source.values(),
        ]
    )  # fmt: skip
    run.stop_agreed = bool(stopping)
    run.guards.before_step(run.step + 1, label_tokens)
    rates = set_learning_rates(run)
    loss = accumulate_gradients(run.objective, micro_batches, label_tokens, run.scaler)
    grad_norm = clip_gradients(run)
    measured = torch.cat([grad_norm[None].to(loss.device, non_blocking=True), loss])
    reading = Reading(
        step=run.step + 1,
        epoch=data.epoch,
        samples=data.samples,
        lr=rates[0],
        num_label_tokens=int(label_tokens),
        num_tokens=int(tokens),
        packing_efficiency=tokens / slots,
        learned_by_source=dict(zip(data.learned_by_source, map(int, by_source), strict=True)),
        data_seconds=waited,
        recompiles=run.compilation.recompiles,
        values=to_host(measured),
        device=device,
        clock=clock,
    )
    return reading, grad_norm


def report(run: Run, late: int) -> None:
    """Tell guards, log, terminal, loggers and observers of the steps that the device has done, and
    wait for it where it is more than `late` steps behind."""
    while run.readings and (len(run.readings) > late or run.readings[0].done):
        reading = run.readings.popleft()
        metrics = reading.metrics()
        run.seconds["train"] += metrics.seconds
        run.seconds["data"] = run.seconds.get("data", 0.0) + metrics.data_seconds
        run.label_tokens += metrics.num_label_tokens
        run.guards.after_step(metrics, reading.samples, reading.at_fault(run.world.size))
        if not run.world.is_main:
            continue
        record = attrs.asdict(metrics) | {
            f"num_label_tokens/{name}": count for name, count in reading.learned_by_source.items()
        }
        run.training_log.append(record)
        run.console.step(metrics)
        run.loggers.log_step(metrics.step, record)
        run.hooks.automodel_step_end(folder=run.folder, step=metrics.step, metrics=record)


def set_learning_rates(run: Run) -> list[float]:
    """Give every parameter group the rate of the step about to be taken."""
    schedule, total = run.config.lr_scheduler, run.horizon.total_steps
    rates = [learning_rate(run.step + 1, peak, schedule, total) for peak in run.peak_lr]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return rates


def clip_gradients(run: Run) -> torch.Tensor:
    """Unscale, measure the norm of all gradients together, and clip it if the YAML says so and the
    update doesn't."""
    run.scaler.unscale_(run.optimizer)
    max_norm = None if scales_gradients(run.optimizer) else run.config.clip_grad_norm
    return run.world.manager.clip(run.model.parameters(), max_norm)
