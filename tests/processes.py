"""Processes that work together over gloo, started once and given one task after another."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT = 120.0  # seconds for one task
START_TIMEOUT = 240.0  # seconds to import PyTorch on a busy machine


class Processes:
    """`size` processes, each a rank of one group; a context manager.

    A task that fails in one of them ends them all; the next starts new ones.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for _, pipe in self._workers:
            pipe.close()  # an idle one ends by itself
        for process, _ in self._workers:
            process.join(2)
            process.kill()
            process.join()
        self._workers = []

    def run(self, task: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Call `task(*args)` in every process; what each returned, by rank."""
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((task, args))
        results = []
        for rank, (process, pipe) in enumerate(self._workers):
            ended = f"rank {rank} didn't finish in {timeout} s (exit code {process.exitcode})"
            try:
                good, result = pipe.recv() if pipe.poll(timeout) else (False, ended)
            except EOFError:
                good, result = False, ended
            if not good:
                others = [p.recv()[1] for _, p in self._workers[rank + 1 :] if p.poll(1)]
                self.__exit__()
                told = [result, *(each for each in others if isinstance(each, str))]
                raise AssertionError("\n".join(told))
            results.append(result)
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, self.size, str(meeting), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        for process, pipe in self._workers:
            assert pipe.poll(START_TIMEOUT), f"process {process.pid} didn't start"
            pipe.recv()


def _work(rank: int, size: int, meeting: str, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist
    import transformers  # noqa: F401 (so that tasks start at once)

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT),
    )
    pipe.send("ready")
    while True:
        try:
            task, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, task(*args)))
        except BaseException:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))


class AnonymousPeak:
    """The most memory that no file backs, above what it was at the beginning.

    Attributes:
        bytes: It, afterwards.
    """

    bytes = 0

    def __enter__(self) -> AnonymousPeak:
        gc.collect()
        self._before = _anonymous_bytes()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            self.bytes = max(self.bytes, _anonymous_bytes() - self._before)
            ended = self._ended.wait(0.002)
        self.bytes = max(self.bytes, _anonymous_bytes() - self._before)


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return int(status.split()[0]) * 1024
