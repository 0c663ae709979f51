"""Quick self-checks in the world that a configuration would run in: whether ranks sum right and how
fast, whether checkpoints fit and how fast they are written, one step. Nothing is left behind."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import attrs
import torch
import torch.distributed as dist

from automodel_core import ranks
from automodel_core.bench.measuring import loaded, only_training
from automodel_core.config.schema import RunConfig
from automodel_core.doctor.facts import nearest, size
from automodel_core.errors import GuardStop, UserError
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.loop import optimizer_step
from automodel_core.train.metrics import peak_memory_gib
from automodel_core.train.prepare import Prepared, check_space, checkpoint_bytes, prepare
from automodel_core.train.signals import StopRequest
from automodel_core.train.world import World

# What is sent, and below what bandwidth (bytes/s) something is wrong rather than merely modest. The
# floors are judgement, far below what such links give: two H100s gave 331e9, a loopback 1.3e9.
SENT = {"cuda": 256 * 2**20, "cpu": 16 * 2**20}
SLOW_LINK = {"nvlink or p2p": 10e9, "no p2p": 2e9, "cpu": 50e6}
ROUNDS = 5

WRITTEN = 64 * 2**20
SLOW_DISK = 100e6  # bytes/s

OUT_OF_MEMORY = (
    "lower dataloader.batch_size (accumulation keeps the global batch), or spread the model with "
    "distributed: {_target_: fsdp2}"
)


@attrs.frozen
class Check:
    """How a check ended.

    Attributes:
        name: What was checked.
        state: "slow" works, and is worth a look.
        message: What was found, with figures.
        fix: What to do; "" if it is OK.
        rank: The rank that failed, where only one did.
        figures: What was measured; bytes, seconds, bytes/s.
    """

    name: str
    state: Literal["OK", "slow", "FAILED"]
    message: str
    fix: str = ""
    rank: int | None = None
    figures: dict[str, float] = attrs.field(factory=dict)


class Stopped(RuntimeError):
    """A check failed on this rank in a way that the others can't be told of; they wait in vain.

    Attributes:
        check: The one that failed.
    """

    def __init__(self, check: Check) -> None:
        super().__init__(check.message)
        self.check = check


def checks(config: RunConfig, context: RunContext) -> Iterator[Check]:
    """Run each check; every rank is given the same results.

    Raises:
        UserError: The configuration can't be used here at all.
        Stopped: This rank failed, among several.
    """
    prepared = prepare(only_training(config), context, Console(-1))
    world, device = prepared.world, prepared.device
    with world.formed(device, config.dist_env):
        yield attempt("all-reduce", lambda: all_reduce(world, device), world)
        yield attempt("disk", lambda: disk(config, prepared), world)
        yield attempt("step", lambda: step(config, context, prepared), world)


def attempt(name: str, check: Callable[[], Check], world: World) -> Check:
    """The check, or FAILED with what it raised."""
    try:
        return check()
    except UserError as error:
        failed = Check(name, "FAILED", error.message, error.fix)
    except GuardStop as error:
        failed = Check(name, "FAILED", f"guard {error.guard}: {error.message}", error.fix)
    except torch.OutOfMemoryError as error:
        failed = Check(name, "FAILED", first_line(error), OUT_OF_MEMORY)
    except Exception as error:
        if not world.alone:
            raise Stopped(elsewhere(name, error)) from error
        failed = Check(name, "FAILED", first_line(error), "send this report with a bug report")
    if not world.alone:
        raise Stopped(attrs.evolve(failed, rank=ranks.rank()))
    return failed


def elsewhere(name: str, error: Exception) -> Check:
    fix = "see what this rank's host has that the others' don't; NCCL_DEBUG=INFO tells more"
    return Check(name, "FAILED", first_line(error), fix, rank=ranks.rank())


def first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def all_reduce(world: World, device: torch.device) -> Check:
    """Sum whole numbers, which float32 holds exactly, and time it.

    The bus bandwidth is nccl-tests', bytes / seconds * 2 (n - 1) / n: what a link carries, whatever
    the number of ranks (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
    """
    name, n = "all-reduce", world.size
    if world.alone:
        return Check(name, "OK", "one process: nothing is sent")
    pattern = torch.arange(SENT[device.type] // 4, device=device, dtype=torch.float32) % 1000
    tensor = pattern + world.rank
    dist.all_reduce(tensor)
    right = torch.equal(tensor, pattern * n + n * (n - 1) / 2)
    wrong = [rank for rank, each in enumerate(world.from_all(right)) if not each]
    if wrong:
        message = f"the sum is wrong on rank(s) {', '.join(map(str, wrong))} of {n}"
        fix = "try NCCL_P2P_DISABLE=1: if that is right, GPU-to-GPU copies are broken (IOMMU, ACS)"
        return Check(name, "FAILED", message, fix, rank=wrong[0])
    seconds = max(world.from_all(timed(lambda: dist.all_reduce(tensor), device)))
    bandwidth = SENT[device.type] / seconds * 2 * (n - 1) / n
    link = kind_of_link(device)
    slow = bandwidth < SLOW_LINK[link]
    return Check(
        name,
        "slow" if slow else "OK",
        f"right on {n} ranks; {size(SENT[device.type])} in {seconds * 1e3:,.1f} ms, bus bandwidth "
        f"{bandwidth / 1e9:,.2f} GB/s",
        f"at least {SLOW_LINK[link] / 1e9:g} GB/s is usual here ({link}): run it again on an idle "
        "machine; on several hosts see NCCL_SOCKET_IFNAME, and NCCL_DEBUG=INFO for the way taken"
        if slow
        else "",
        figures={"bytes": SENT[device.type], "seconds": seconds, "bus_bytes_per_second": bandwidth},
    )


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds for one call, the mean of some."""
    started = 0.0
    for number in range(ROUNDS + 1):
        if number <= 1:  # the first connects
            wait(device)
            started = time.perf_counter()
        call()
    wait(device)
    return (time.perf_counter() - started) / ROUNDS


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kind_of_link(device: torch.device) -> str:
    """What to expect between this rank's GPU and its neighbour."""
    if device.type != "cuda":
        return "cpu"
    count = torch.cuda.device_count()
    one_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == ranks.world_size()
    neighbour = (device.index + 1) % count
    near = one_host and count > 1 and torch.cuda.can_device_access_peer(device.index, neighbour)
    return "nvlink or p2p" if near else "no p2p"


def disk(config: RunConfig, prepared: Prepared) -> Check:
    """Whether the run's checkpoints fit, and how fast one is written; rank 0 looks."""
    world = prepared.world
    found = attrs.asdict(written(config, prepared)) if world.is_main else None
    return Check(**world.from_main(found))


def written(config: RunConfig, prepared: Prepared) -> Check:
    place = nearest(Path(config.checkpoint.checkpoint_dir))
    try:
        check_space(config, prepared, place)
        seconds = seconds_to_write(place)
    except UserError as error:
        return Check("disk", "FAILED", error.message, error.fix)
    except OSError as error:
        fix = "choose another checkpoint.checkpoint_dir, or make room there"
        return Check("disk", "FAILED", f"{place} can't be written to: {error.strerror}", fix)
    rate = WRITTEN / seconds
    whole = checkpoint_bytes(prepared)
    message = f"{rate / 1e6:,.0f} MB/s at {place}"
    if prepared.adapter is None:
        message += f"; a checkpoint of {size(whole)} takes {whole / rate:,.1f} s"
    fix = "write checkpoints to a local disk, or save less often: checkpoint.save_every_steps"
    return Check(
        "disk",
        "slow" if rate < SLOW_DISK else "OK",
        message,
        fix if rate < SLOW_DISK else "",
        figures={"bytes": WRITTEN, "seconds": seconds, "bytes_per_second": rate},
    )


def seconds_to_write(place: Path) -> float:
    """Until a file is on the disk; random, so that no filesystem makes it smaller."""
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=place) as file:
        started = time.perf_counter()
        for _ in range(WRITTEN // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - started


def step(config: RunConfig, context: RunContext, prepared: Prepared) -> Check:
    """Two steps as the run takes them: the first allocates and compiles, the second is timed."""
    with loaded(only_training(config), context, prepared) as run:
        first, second = (optimizer_step(run, StopRequest()) for _ in range(2))
        metrics, seconds = second.metrics(), second.clock.since(first.clock)
        memory = max(prepared.world.from_all(peak_memory_gib(prepared.device)))
    figures = {
        "loss": metrics.loss,
        "seconds": seconds,
        "tokens": metrics.num_tokens,
        "peak_memory_gib": memory,
    }
    if not math.isfinite(metrics.loss):
        fix = "look at its samples with `automodel data show`, and at optimizer.lr"
        return Check("step", "FAILED", f"the loss is {metrics.loss}", fix, figures=figures)
    return Check(
        "step",
        "OK",
        f"{seconds * 1e3:,.0f} ms for {metrics.num_tokens:,} tokens on {run.world.size} rank(s), "
        f"loss {metrics.loss:.3f}, at most {memory:.2f} GiB on a rank",
        figures=figures,
    )
