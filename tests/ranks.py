"""Run a function in several processes that form a gloo group, as a launcher would start them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """Processes that stay: starting one takes seconds, a job on a tiny model a fraction of one.

    After a job that failed they are thrown away, since some may still wait for the others, and the
    next job is given new ones.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []

    def run(self, job: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
        """`job(*arguments)` on every rank; returns what each of them returned, in their order.

        Args:
            job: A function of a module, importable in another process.
            arguments: Anything that can be pickled, as the results.
            timeout: Seconds until the job counts as hung.

        Raises:
            RuntimeError: A rank raised (its traceback is the message), died, or took too long.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((job, arguments))
        try:
            return self._results(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp(prefix="ranks-")) / "store"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.size, str(store)), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _results(self, deadline: float) -> list[Any]:
        """The first failure is the one to tell; the others only wait for that rank."""
        results: dict[int, Any] = {}
        while len(results) < self.size:
            left = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = multiprocessing.connection.wait(left, max(0.0, deadline - time.monotonic()))
            if not ready:
                waiting = [rank for rank in range(self.size) if rank not in results]
                raise RuntimeError(f"ranks {waiting} of {self.size} took too long")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    failure, results[rank] = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"rank {rank} of {self.size} died") from None
                if failure:
                    raise RuntimeError(f"rank {rank} of {self.size}:\n{failure}")
        return [results[rank] for rank in range(self.size)]


def _serve(pipe: Connection, rank: int, size: int, store: str) -> None:
    """A rank's life: join the group, then one job after the other."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((None, job(*arguments)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
