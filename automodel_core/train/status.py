"""What state a run is in, for whoever looks at its folder later: `status.json`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

import attrs

from automodel_core.train.run_folder import is_locked

State = Literal["running", "finished", "stopped", "failed", "died"]


@attrs.frozen
class Status:
    """How far a run has come.

    Attributes:
        state: "died" is never written: a run that says it is running and isn't has died.
        step: Optimizer steps done.
        total_steps: Optimizer steps when it is complete; None if a stream's end decides.
        command: The command that goes on with it.
        reason: What stopped or failed it.
    """

    state: State
    step: int
    total_steps: int | None
    command: str
    reason: str = ""


def write_status(folder: Path, status: Status) -> None:
    """Say so in the folder. A full disk is left for the logs and checkpoints to report."""
    aside = folder / ".status-new"
    with contextlib.suppress(OSError):
        aside.write_text(json.dumps(attrs.asdict(status), indent=1))
        aside.replace(folder / "status.json")


def read_status(folder: Path) -> Status | None:
    """The state of a run folder; None if it isn't one."""
    try:
        status = Status(**json.loads((folder / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if status.state == "running" and not is_locked(folder):
        return attrs.evolve(status, state="died", reason="the process is gone")
    return status
