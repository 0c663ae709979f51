"""One process for each GPU of this machine, through torchrun's own launcher.

The command that the user typed starts the processes and waits; each of them runs the same command.
In a process that torchrun has started, ours or somebody else's, the run simply goes on.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from automodel_core import ranks
from automodel_core.errors import DONE, UserError

# Where processes that this command started leave what went wrong: it shows one, not all.
ERRORS = "_AUTOMODEL_ERRORS"

FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1")


def processes_wanted(asked: str | None) -> int:
    """How many processes are to be started; 1 goes on in this one.

    Args:
        asked: `--nproc-per-node`: a number, or `gpu` for one for each GPU, which is the default.

    Raises:
        UserError: It is neither, or there are fewer GPUs than that.
    """
    if "RANK" in os.environ:
        return 1
    gpus = visible_gpus()
    if asked in (None, "gpu", "auto"):
        return max(gpus, 1)
    if not asked.isdecimal() or asked == "0":
        raise UserError(
            f"--nproc-per-node takes a number of processes, or gpu, not {asked}.",
            fix="write --nproc-per-node 2, say",
        )
    if gpus and int(asked) > gpus:
        raise UserError(
            f"--nproc-per-node {asked}: this machine shows {gpus} GPU(s), one for each process.",
            fix=f"write --nproc-per-node {gpus}, or hide them all with CUDA_VISIBLE_DEVICES=",
        )
    return int(asked)


def visible_gpus() -> int:
    """The GPUs that PyTorch will see, counted without importing it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([each for each in chosen.split(",") if each.strip()])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run this command in so many processes.

    Returns:
        The exit code of the one that failed first, else 0.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    command = ["-m", "automodel_core", *arguments]
    equivalent = ["torchrun", "--nproc-per-node", str(processes), *command]
    click.echo(f"{processes} processes; --nproc-per-node 1 is one. The same as:", err=True)
    click.echo(f"    {shlex.join(equivalent)}", err=True)
    cores = os.cpu_count() or processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"automodel-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        # The others are for the run: it saves and stops.
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    with tempfile.TemporaryDirectory() as folder, quiet_launcher(), signals_forwarded():
        os.environ[ERRORS] = folder
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            said = Path(folder, str(rank))
            if said.exists():
                click.echo(said.read_text(), err=True)
            else:
                click.echo(f"Rank {rank} ended with exit code {failure.exitcode}.", err=True)
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return DONE


def say(text: str) -> None:
    """What went wrong, to whoever shows it: once, although every rank may have met it."""
    if folder := os.environ.get(ERRORS):
        Path(folder, str(ranks.rank())).write_text(text)
    else:
        click.echo(f"[rank {ranks.rank()}] {text}" if ranks.world_size() > 1 else text, err=True)


@contextmanager
def signals_forwarded() -> Iterator[None]:
    """Signals to this process reach every process of the run, which live in sessions of their own
    so that a terminal's Ctrl-C doesn't reach them twice."""

    def forward(number: int, frame: object) -> None:
        for child in children():
            os.kill(child, number)

    names = [name for name in FORWARDED if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), forward) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def children() -> list[int]:
    """The processes that this one has started."""
    import psutil

    return [child.pid for child in psutil.Process().children()]


@contextmanager
def quiet_launcher() -> Iterator[None]:
    """torchrun logs every failure at length; the run has said what went wrong."""
    import logging

    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
