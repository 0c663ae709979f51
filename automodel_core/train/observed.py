"""Who is told how a run begins and ends: observers, loggers, and the status file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from automodel_core.errors import SavedAfterSignal
from automodel_core.train.run import Run
from automodel_core.train.status import State, Status, write_status


@contextlib.contextmanager
def observed(run: Run, command: str) -> Iterator[None]:
    """Tell the observers, and whoever looks at the folder, that the run began and how it ended."""
    hooks, folder = run.hooks, run.folder
    hooks.automodel_model_built(folder=folder, model=run.model)
    total = run.horizon.total_steps

    def note(state: State, reason: str = "") -> None:
        write_status(folder, Status(state, run.step, total, command, reason))

    note("running")
    hooks.automodel_run_start(folder=folder, config=run.config, step=run.step, total_steps=total)
    run.loggers.start(folder, run.step)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, SavedAfterSignal | KeyboardInterrupt)
        state: State = "stopped" if stopped else "failed"
        note(state, str(error).partition("\n")[0])
        run.loggers.finish(state)
        hooks.automodel_exception(folder=folder, step=run.step, error=error)
        raise
    note("finished")
    run.loggers.finish("finished")
    hooks.automodel_run_end(folder=folder, step=run.step)
