"""Rows become samples: in this process, and in others beside it where that takes long.

Whoever reads the rows stays in this process. They go in chunks to whoever writes and tokenises
them, and what comes back is in their order, so that nobody can tell from a data set who made it.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from itertools import islice
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

# From some rows to what is made of them.
Work = Callable[[Sequence[Any]], T]

# Seconds after which other processes, which take some to start, are worth it; and how many at most:
# this one could not read for more.
PATIENCE = 10.0
MOST = 16

# Rows in a chunk: the tokenizer gets them at once. And how many chunks wait for each process.
CHUNK = 1000
AHEAD = 2


def in_order(items: Iterable[Any], start: Callable[[Any], Work[T]], given: Any) -> Iterator[T]:
    """What is made of each chunk of items, in their order.

    Args:
        items: Read here, as far ahead as the processes need it.
        start: Called with `given` in every process that works.
        given: What can't be pickled keeps the work in this process.
    """
    work, rest, begun = start(given), chunks(items), time.monotonic()
    for chunk in rest:
        yield work(chunk)
        if time.monotonic() - begun > PATIENCE:
            break
    from loky import cpu_count  # here, where runs on small data never come

    ready = pickled((start, given)) if cpu_count() > 1 else None
    if ready is None:
        yield from map(work, rest)
    else:
        yield from by_processes(rest, work, ready)


def by_processes(rest: Iterator[Sequence[Any]], work: Work[T], ready: bytes) -> Iterator[T]:
    """The same in processes of their own. A chunk that can't be sent there is worked on here, and
    so are all if a process is killed, for its memory perhaps."""
    from loky import ProcessPoolExecutor, cpu_count

    count = min(cpu_count(), MOST)
    # Each process is one core's; and none of them sees a GPU.
    alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(ready,), env=alone)
    under_way: deque[tuple[Sequence[Any], Future[T] | None]] = deque()

    def sent(chunk: Sequence[Any]) -> Future[T] | None:
        packed = pickled(chunk)
        with suppress(BrokenExecutor):
            return pool.submit(_work, packed) if packed else None

    def done() -> T:
        chunk, future = under_way.popleft()
        with suppress(BrokenExecutor):
            if future is not None:
                return future.result()
        return work(chunk)

    try:
        for chunk in rest:
            under_way.append((chunk, sent(chunk)))
            if len(under_way) > AHEAD * count:
                yield done()
        while under_way:
            yield done()
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def pickled(value: Any) -> bytes | None:
    """None if it can't be, as a function in a function."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


# In a process that works, what it does.
_own_work: Work[Any]


def _begin(ready: bytes) -> None:
    global _own_work
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    start, given = pickle.loads(ready)
    _own_work = start(given)


def _end_with(parent: int) -> None:
    """Nobody else ends a process whose parent was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(sent: bytes) -> Any:
    return _own_work(pickle.loads(sent))
