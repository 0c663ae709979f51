"""A run whose ranks look after each other, and say where they were when something fails."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import attrs
import click

from automodel_core.config.schema import DistEnv
from automodel_core.telling import WHEREABOUTS, beside_error_file, tell
from automodel_core.train.rank_log import LOGS, MEANT
from automodel_core.train.run import Run
from automodel_core.train.status import Status, write_status
from automodel_core.train.world import World
from automodel_core.watchdog.beats import Pulse
from automodel_core.watchdog.watching import Watchdog, own_connection


@attrs.define
class Progress:
    """How far this rank is.

    Attributes:
        run: Once its weights are read.
    """

    run: Run | None = None

    def under_way(self) -> tuple[int, list[int]]:
        """The step under way, 0 before the first, and this rank's samples in it."""
        return (self.run.step + 1, self.run.data.under_way()) if self.run else (0, [])

    def __str__(self) -> str:
        step, samples = self.under_way()
        if not step:
            return "before its first step"
        return f"in step {step}; its samples: {', '.join(map(str, samples)) or 'none'}"


@contextmanager
def watched(world: World, folder: Path, settings: DistEnv, command: str) -> Iterator[Progress]:
    """Within it the ranks look after each other, and an error says where this one was.

    Args:
        world: The ranks, connected.
        folder: The run's.
        settings: How long who may wait.
        command: That goes on with the run.

    Yields:
        For the caller to say how far the run is.
    """
    progress = Progress()
    if world.alone:
        yield progress
        return
    try:
        if settings.watchdog_seconds is None:
            yield progress
        else:
            with watchdog(world, folder, settings, command, progress).watching():
                yield progress
    except Exception as error:
        if not isinstance(error, MEANT):
            error.add_note(
                f"Rank {world.rank} of {world.size} on {socket.gethostname()}, {progress}.\n"
                f"The log of this rank: {folder / LOGS / f'rank_{world.rank}.log'}"
            )
        raise


def watchdog(
    world: World, folder: Path, settings: DistEnv, command: str, progress: Progress
) -> Watchdog:
    """That of this rank; see `watched`."""

    def last_words(verdict: str) -> None:
        tell(verdict)
        if world.is_main and progress.run:
            step, total = progress.run.step, progress.run.horizon.total_steps
            reason = verdict.partition("\n")[0]
            write_status(folder, Status("failed", step, total, command, reason))

    limit = timedelta(minutes=settings.timeout_minutes)
    return Watchdog(
        rank=world.rank,
        size=world.size,
        store=own_connection(world.size, limit),
        pulse=Pulse(progress.under_way),
        patience=settings.watchdog_seconds,
        limit=0.9 * limit.total_seconds(),  # before the collectives give up, which know less
        logs=str(folder / LOGS),
        say=partial(click.echo, err=True),
        last_words=last_words,
        aside=beside_error_file(WHEREABOUTS),
    )
