"""`automodel runs`: the runs in a folder, how far each has come, and how to go on with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from automodel_core.errors import DONE, UserError
from automodel_core.train.jsonl import JsonLines
from automodel_core.train.status import Status, read_status


@click.command("runs")
@click.argument("directory", type=click.Path(path_type=Path), default=".")
def runs(directory: Path) -> int:
    """List the runs below DIRECTORY: state, last step, loss, how to resume."""
    found = list(runs_below(directory))
    if not found:
        raise UserError(
            f"There is no run in {directory} or one level below.",
            fix="name the folder that holds your checkpoint_dir folders",
        )
    for folder, status in found:
        click.echo(f"{folder}: {described(folder, status)}")
        if status.state in ("stopped", "failed", "died"):
            click.echo(f"    go on: {status.command}")
    return DONE


def runs_below(directory: Path) -> Iterator[tuple[Path, Status]]:
    """`directory` itself, if it is a run folder, and its subfolders that are."""
    children = sorted(directory.iterdir()) if directory.is_dir() else []
    for folder in (directory, *children):
        if status := read_status(folder):
            yield folder, status


def described(folder: Path, status: Status) -> str:
    """State, steps and the newest loss on one line."""
    steps = JsonLines(folder / "training.jsonl").read()
    loss = f", loss {steps[-1]['loss']:.4f}" if steps else ""
    reason = f" ({status.reason})" if status.reason else ""
    done = steps[-1]["step"] if steps else status.step
    of = "" if status.total_steps is None else f" of {status.total_steps}"
    return f"{status.state}{reason}, step {done}{of}{loss}"
