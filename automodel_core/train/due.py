"""When a run validates and saves."""

from __future__ import annotations

from automodel_core.train.run import Run


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
    done = {record["step"] for record in run.validations}
    return run.step > 0 and validation_due(run) and run.step not in done


def due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0
