"""The loss on held-out data: when it is measured, how, and when it ends the run."""

from __future__ import annotations

import time

from automodel_core.train.run import Run
from automodel_core.train.step import evaluate


def validate(run: Run) -> None:
    """The mean token loss over each whole validation set, however it is batched."""
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    run.model.eval()
    for name, data in run.validation.items():
        batches = map(run.objective.prepare, data.batches())
        loss, label_tokens = evaluate(run.objective, batches)
        prefix = f"{name}/" if name else ""
        metrics |= {f"{prefix}loss": loss, f"{prefix}num_label_tokens": label_tokens}
        run.console.validation(run.step, name, loss)
    run.model.train()
    seconds = time.perf_counter() - started
    run.seconds["validate"] += seconds
    record = {"step": run.step, **metrics, "seconds": seconds}
    run.validations.append(record)
    if run.world.is_main:
        run.validation_log.append(record)
    run.loggers.log_validation(run.step, record)
    run.hooks.automodel_validation_end(folder=run.folder, step=run.step, metrics=record)
    run.ended_early = no_longer_improving(run)


def no_longer_improving(run: Run) -> bool:
    """Whether `early_stopping` ends the run, by all validations since its beginning."""
    rule = run.config.early_stopping
    if rule is None:
        return False
    values = [record[rule.metric] for record in run.validations]
    return len(values) > rule.patience and min(values[-rule.patience :]) >= min(
        values[: -rule.patience]
    )
