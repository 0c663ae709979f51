"""One process for each GPU of this machine, through torchrun's own launcher.

The command that the user typed starts the processes and waits; each of them runs the same command.
On several nodes it is typed on each of them, with one place to meet at.
In a process that torchrun has started, ours or somebody else's, the run simply goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import attrs
import click

from automodel_core.config.secrets import masked_words
from automodel_core.errors import DONE, FAILED, INTERRUPTED, SAVED_AFTER_SIGNAL, UserError
from automodel_core.telling import TOLD, WHEREABOUTS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# The run handles these three times over: it saves, it hurries, it is interrupted.
FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1")
PATIENCE = 3

# How a process ends that was in C or C++; Python writes its stack to the rank's log.
CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV")

# What the names of the runs begin with that are launched here.
NAME = "automodel-"


class Processes(click.ParamType):
    """How many processes: a number, or `gpu` or `auto` as torchrun knows them."""

    name = "N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if value in ("gpu", "auto"):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value} is no number of processes, such as 2, nor gpu or auto.", param, ctx)
        return int(value)


@attrs.frozen
class Meeting:
    """How the launchers of a run on several nodes find each other.

    Attributes:
        nodes: How many there are.
        endpoint: HOST:PORT of the rendezvous; the launcher on that host opens it.
    """

    nodes: int = 1
    endpoint: str = "localhost:0"

    @classmethod
    def asked_for(cls, nodes: int, endpoint: str | None) -> Meeting:
        """What the command line says. Raises UserError if the nodes have no place to meet."""
        host, _, port = (endpoint or "").rpartition(":")
        if endpoint is not None and not (host and port.isdecimal()):
            raise UserError(
                f"--rdzv-endpoint {endpoint} is no HOST:PORT.", fix="write it like node1:29500"
            )
        if nodes == 1:
            return cls()
        if endpoint is None:
            raise UserError(
                f"--nnodes {nodes}: the nodes have no place to meet.",
                fix="add --rdzv-endpoint HOST:PORT, the same on every node and with one's name",
            )
        return cls(nodes, endpoint)

    @property
    def name(self) -> str:
        """Of the run, the same on every node."""
        return NAME + (self.endpoint if self.nodes > 1 else str(os.getpid()))


ALONE = Meeting()


def inside_torchrun() -> bool:
    """Whether a launcher has started this process as one rank of a run."""
    return "RANK" in os.environ


def launched_here() -> bool:
    """Whether it was `launch` that started this process: its parent has told what is to be told."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(NAME)


def processes_wanted(asked: int | str | None) -> int:
    """How many processes are to be started; 1 goes on in this one.

    Args:
        asked: A number; `gpu`, one for each GPU; `auto` or None, the same or one without GPUs.

    Raises:
        UserError: There are fewer GPUs than that, or torchrun has started another number.
    """
    if inside_torchrun():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if isinstance(asked, int) and asked != here:
            raise UserError(
                f"--nproc-per-node {asked}: the launcher has started {here} process(es) here.",
                fix="give the number to that launcher, and leave it out behind `automodel run`",
            )
        return 1
    import torch

    gpus = torch.cuda.device_count()
    if asked == "gpu" and not gpus:
        raise UserError("--nproc-per-node gpu: PyTorch sees none.", fix="write a number, such as 1")
    if not isinstance(asked, int):
        return max(gpus, 1)
    if 0 < gpus < asked:
        raise UserError(
            f"--nproc-per-node {asked}: PyTorch sees {gpus} GPU(s), and each process needs one.",
            fix=f"write --nproc-per-node {gpus}, or hide them all with CUDA_VISIBLE_DEVICES=",
        )
    return asked


def in_several(
    asked: int | str | None, typed: Sequence[str], *, quiet: bool, meeting: Meeting = ALONE
) -> int | None:
    """Run the command that was typed in several processes, if several are wanted.

    Args:
        asked: As `processes_wanted` takes it.
        typed: What follows `automodel`.
        quiet: Don't print the line of torchrun that does the same.
        meeting: With the launchers of other nodes.

    Returns:
        The exit code; None if this process is to go on with it.
    """
    processes = processes_wanted(asked)
    if processes * meeting.nodes == 1 or inside_torchrun():
        return None
    if not quiet and meeting.nodes == 1:
        announce(processes, typed)
    return launch(processes, ["-m", "automodel_core", *typed], meeting)


def announce(processes: int, arguments: Sequence[str]) -> None:
    """Print the command that does the same with torchrun."""
    words = masked_words(["-m", "automodel_core", *arguments])
    command = ["torchrun", "--standalone", "--nproc-per-node", str(processes), *words]
    click.echo(f"{processes} processes; --nproc-per-node 1 is one. The same as:", err=True)
    click.echo(f"    {shlex.join(command)}", err=True)


def launch(processes: int, command: Sequence[str], meeting: Meeting = ALONE) -> int:
    """Run Python with the arguments `command` in so many processes, as torchrun does.

    Args:
        processes: On this node.
        command: What follows `python -u`.
        meeting: With the launchers of the other nodes.

    Returns:
        75 if any of them ended so, else the exit code of the one that failed first, else 0. A
        signal that ended it counts as in a shell: 128 + its number.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    signals = Forwarding()
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet_launcher(),
        signals.installed(),
        cores_shared_by(processes),
    ):
        config = LaunchConfig(
            min_nodes=meeting.nodes,
            max_nodes=meeting.nodes,
            nproc_per_node=processes,
            run_id=meeting.name,
            rdzv_backend="c10d",
            rdzv_endpoint=meeting.endpoint,
            local_addr="localhost" if meeting.nodes == 1 else None,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            # The others are for the run, which saves and stops; here they would end it.
            signals_to_handle="SIGHUP,SIGQUIT",
        )
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            if signals.killed:
                click.echo("Interrupted: the processes were killed.", err=True)
                return INTERRUPTED
            rank, failure = error.get_first_failure()
            if not any(Path(folder).rglob(TOLD)):
                everywhere = processes * meeting.nodes
                click.echo(f"Rank {rank} of {everywhere} {ending(failure)}.", err=True)
                for seen in Path(folder).rglob(f"{failure.local_rank}/{WHEREABOUTS}"):
                    click.echo(f"    Last seen: {seen.read_text()}", err=True)
            codes = {each.exitcode for each in error.failures.values()}
            return SAVED_AFTER_SIGNAL if SAVED_AFTER_SIGNAL in codes else exit_code(failure)
        except RendezvousError as error:
            why = str(error).partition("\n")[0]
            click.echo(f"This node has lost the others, at {meeting.endpoint}: {why}", err=True)
            return FAILED
    return DONE


@contextlib.contextmanager
def cores_shared_by(processes: int) -> Iterator[None]:
    """Within it processes are started with their share of the cores, unless the user has said."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(usable_cores() // processes, 1))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def exit_code(failure: ProcessFailure) -> int:
    """As a shell has it."""
    return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode


def ending(failure: ProcessFailure) -> str:
    """How a process ended that didn't say why."""
    if failure.exitcode > 0:
        return f"ended with exit code {failure.exitcode} and didn't say why"
    name = failure.signal_name()
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    log = "; its log has the stack" if name in CRASHES else ""
    return f"was ended by {name}{memory}{log}"


class Forwarding:
    """Signals to this process reach every process of the run. Those live in sessions of their own,
    so that a terminal's Ctrl-C doesn't reach them too.

    Attributes:
        killed: There were more signals than the run has answers to, so it was killed.
    """

    def __init__(self) -> None:
        self._count = 0

    @property
    def killed(self) -> bool:
        return self._count > PATIENCE

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler. Raises KeyboardInterrupt if nothing has been started yet."""
        import psutil

        self._count += 1
        children = psutil.Process().children()
        if not children and self._count == 1:
            raise KeyboardInterrupt
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL if self.killed else number)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within it, signals are forwarded."""
        names = [name for name in FORWARDED if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), self.handle) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def quiet_launcher() -> Iterator[None]:
    """torchrun logs every failure at length; the run has said what went wrong."""
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
