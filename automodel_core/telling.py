"""What ended a run is told once, although each of its processes may have met it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from automodel_core import ranks
from automodel_core.errors import FailedElsewhere

# The name of the file that the first process to tell leaves for the others.
TOLD = "told"

# The name of the file that a process leaves for its launcher, should it be killed.
WHEREABOUTS = "whereabouts"

# Seconds that the cause has to be told, or torchrun to end the others, before its effects are told.
AFTER_THE_CAUSE = 3.0


def tell(text: str) -> None:
    """Print what went wrong, unless another process of this host has."""
    if not is_told():
        click.echo(text, err=True)


def is_told() -> bool:
    """Whether another process of this host tells what went wrong. If not, this one is to, now.

    torchrun gives every process a file for its error, `attempt_0/RANK/error.json`; the folder above
    is new with each restart and shared on a host. Where there is none, each process tells.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if ranks.world_size() == 1 or not error_file:
        return False
    try:
        Path(error_file).parents[1].joinpath(TOLD).touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:  # the folder is gone; twice is better than never
        return False
    return False


def beside_error_file(name: str) -> Path | None:
    """A file of this process alone that its launcher can read; None without a launcher."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(error_file).with_name(name) if error_file else None


def let_the_cause_be_told(error: Exception) -> None:
    """Wait if `error` is only how this process noticed that another one failed."""
    from torch.distributed import DistError

    noticed = isinstance(error, FailedElsewhere | DistError) or "gloo/transport" in str(error)
    if noticed and ranks.world_size() > 1:
        time.sleep(AFTER_THE_CAUSE)
