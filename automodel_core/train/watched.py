"""A run whose ranks look after each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import click

from automodel_core.telling import WHEREABOUTS, beside_error_file, tell
from automodel_core.train.rank_log import LOGS
from automodel_core.train.run import Run
from automodel_core.train.status import Status, write_status
from automodel_core.watchdog.beats import Pulse
from automodel_core.watchdog.watching import Watchdog, own_connection


@contextmanager
def watched(run: Run, command: str) -> Iterator[None]:
    """Within it the ranks look after each other."""
    world, settings = run.world, run.config.dist_env
    if world.alone or settings.watchdog_seconds is None:
        yield
        return

    def last_words(verdict: str) -> None:
        tell(verdict)
        if world.is_main:
            reason = verdict.partition("\n")[0]
            total = run.horizon.total_steps
            write_status(run.folder, Status("failed", run.step, total, command, reason))

    limit = timedelta(minutes=settings.timeout_minutes)
    watchdog = Watchdog(
        rank=world.rank,
        size=world.size,
        store=own_connection(world.size, limit),
        pulse=Pulse(lambda: (run.step + 1, run.data.under_way())),
        patience=settings.watchdog_seconds,
        limit=0.9 * limit.total_seconds(),  # before the collectives give up, which know less
        logs=str(run.folder / LOGS),
        say=partial(click.echo, err=True),
        last_words=last_words,
        aside=beside_error_file(WHEREABOUTS),
    )
    with watchdog.watching():
        yield
