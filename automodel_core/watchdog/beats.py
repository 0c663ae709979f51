"""What a rank tells the others of itself, every few seconds, from a thread beside the training.

The training thread does nothing for it: where it stands is read off its Python frames, and whether
it waits there off the processor time that it has not used.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

# Where a thread stands that waits for other ranks: in a collective, or in a backward pass, whose
# C++ waits for those that it has started.
COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/_functional_collectives.py",
)
BACKWARD = "torch/autograd/graph.py"

# Who waits uses no more of a processor than this, and reads and writes no more than so many bytes
# between two beats (the watchdog itself sends some).
IDLE, TALK = 0.05, 2**20

# Innermost frames of a stack, and samples of a step, that are told.
FRAMES, SAMPLES = 12, 16


@attrs.frozen(kw_only=True)
class Beat:
    """A rank at one moment.

    Attributes:
        number: Counts up; a rank whose number stands still is gone or stopped.
        host: Its machine.
        pid: Its process there.
        step: The optimizer step under way.
        samples: The numbers of this rank's samples in it.
        waiting: Seconds in one and the same wait for other ranks; 0 if it isn't in one.
        idle: Seconds in which no thread of the process has computed, read or written.
        stack: Where its training thread stands, the innermost call last.
    """

    number: int
    host: str
    pid: int
    step: int
    samples: list[int]
    waiting: float
    idle: float
    stack: list[str]

    def to_json(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def from_json(cls, told: bytes) -> Beat:
        return cls(**json.loads(told))


@attrs.define
class Pulse:
    """Makes the beats of this rank.

    Args:
        under_way: The step under way and this rank's samples in it.
        thread: The thread that trains.
    """

    under_way: Callable[[], tuple[int, list[int]]]
    thread: threading.Thread = attrs.field(factory=threading.current_thread)
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)
    _place: Any = None
    _since: float = attrs.field(factory=time.monotonic)
    _idle_since: float = attrs.field(factory=time.monotonic)
    _read: float = attrs.field(factory=time.monotonic)
    _used: tuple[float, float] = (0.0, 0.0)
    _moved: int = 0

    def beat(self) -> Beat:
        """How things stand now."""
        now, used = time.monotonic(), (thread_seconds(self.thread), time.process_time())
        allowed = IDLE * (now - self._read)
        thread_idle, all_idle = (u - v <= allowed for u, v in zip(used, self._used, strict=True))
        moved, before = bytes_moved(), self._moved
        self._read, self._used, self._moved = now, used, moved
        if not all_idle or moved - before > TALK:
            self._idle_since = now
        step, samples = self.under_way()
        frames = frames_of(self.thread)
        place = wait_in(frames, thread_idle=thread_idle, all_idle=all_idle)
        if place is None or (step, place) != self._place:
            self._place, self._since = (step, place), now
        return Beat(
            number=next(self._numbers),
            host=socket.gethostname(),
            pid=os.getpid(),
            step=step,
            samples=samples[:SAMPLES],
            waiting=now - self._since if place is not None else 0.0,
            idle=now - self._idle_since,
            stack=[described(frame) for frame in reversed(frames[:FRAMES])],
        )


def wait_in(frames: list[FrameType], *, thread_idle: bool, all_idle: bool) -> Any:
    """What tells the wait for other ranks that a thread is in from any other; None if it is in
    none. A collective holds up its own thread; a backward pass may be computed by others."""
    if not frames:
        return None
    file = frames[0].f_code.co_filename
    waits = (thread_idle and file.endswith(COLLECTIVES)) or (all_idle and file.endswith(BACKWARD))
    return (id(frames[0]), frames[0].f_lasti) if waits else None


def frames_of(thread: threading.Thread) -> list[FrameType]:
    """The innermost first."""
    frame, frames = sys._current_frames().get(thread.ident), []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def described(frame: FrameType) -> str:
    """A frame in one line: `file.py:12 in function`, with the file's last folders."""
    place = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{place}:{frame.f_lineno} in {frame.f_code.co_name}"


def thread_seconds(thread: threading.Thread) -> float:
    """Processor time of a thread; where the system doesn't tell it, that of the process."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time()
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def bytes_moved() -> int:
    """What this process has read and written, files and pipes; 0 where the system doesn't tell."""
    try:
        counters = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in counters if line.startswith(("rchar", "wchar")))
