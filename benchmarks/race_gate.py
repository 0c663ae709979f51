"""How `race.py` makes a contestant's training loop go on, wait, and tell its times.

Commands are lines of JSON, {"steps": n, "profiled": m}. Each is answered with seconds, losses and
learned tokens of its steps, the peak memory, and where the time of the last m went. Between
commands cached memory is given back, so that several contestants fit on one GPU; the first steps
after that are slower, and `race.py` doesn't count them.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TextIO

import torch

Loss = torch.Tensor | Callable[[], float]


class Gate:
    """Lets steps through when told to, and times them from end to end without waiting in between.

    Args:
        commands: Where they come from.
        replies: Where answers go.
    """

    def __init__(self, commands: TextIO, replies: TextIO) -> None:
        self.commands, self.replies = commands, replies
        self.left = self.profiled = 0
        self.ends: list[Any] = []
        self.losses: list[Loss] = []
        self.learned: list[Loss] = []
        self.profile: torch.profiler.profile | None = None

    def before(self) -> None:
        """A step is about to begin: wait until it may. Exits when there are no more commands."""
        if not self.left:
            self.next_command()
        if self.left == self.profiled:
            self.profile = torch.profiler.profile()
            self.profile.start()

    def next_command(self) -> None:
        """Answer the last command, if there was one, and wait for the next."""
        if self.ends:
            self.reply()
        line = self.commands.readline()
        if not line:
            os._exit(0)
        told = json.loads(line)
        self.left, self.profiled = told["steps"], told.get("profiled", 0)
        self.losses, self.learned = [], []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.ends = [now()]

    def after(self, loss: Loss, learned: Loss) -> None:
        """A step's work has all been asked for.

        Args:
            loss: Its mean loss, or what gives it.
            learned: How many tokens it was the mean of, likewise.
        """
        self.losses.append(loss)
        self.learned.append(learned)
        self.ends.append(now())
        self.left -= 1

    def reply(self) -> None:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        found = {
            "seconds": [between(a, b) for a, b in pairwise(self.ends)],
            "losses": [float(each() if callable(each) else each) for each in self.losses],
            "learned": [int(each() if callable(each) else each) for each in self.learned],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
        }
        self.losses, self.learned = [], []
        if self.profile:
            self.profile.stop()
            found["profile"] = where_time_went(self.profile)
            self.profile = None
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        print(json.dumps(found), file=self.replies, flush=True)


def where_time_went(profile: torch.profiler.profile, most: int = 25) -> dict[str, Any]:
    """Of the device's work in a profile.

    Returns:
        `span`, seconds from its first kernel to the end of its last; `idle`, the share of them in
        which none ran; `kernels`, the longest by name: seconds, and how many.
    """
    events = [
        each
        for each in profile.events()
        if each.device_type.name == "CUDA" and not each.is_user_annotation
    ]
    spans = sorted((each.time_range.start, each.time_range.end) for each in events)
    busy, end = 0.0, spans[0][0] if spans else 0.0
    for start, stop in spans:
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    whole = end - spans[0][0] if spans else 0.0
    by_name: dict[str, list[float]] = {}
    for each in events:
        of_it = by_name.setdefault(each.name, [0.0, 0])
        of_it[0] += each.time_range.elapsed_us() / 1e6
        of_it[1] += 1
    longest = sorted(by_name.items(), key=lambda item: -item[1][0])[:most]
    return {
        "span": whole / 1e6,
        "idle": 1 - busy / whole if whole else None,
        "kernels": [[name[:120], *of_it] for name, of_it in longest],
    }


def now() -> Any:
    """A mark in the device's work."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(a: Any, b: Any) -> float:
    return a.elapsed_time(b) / 1000 if hasattr(a, "elapsed_time") else b - a
