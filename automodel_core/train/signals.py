"""Stopping politely: the first signal ends the run after the current step; the second drops what is
being done and ends it at once; a third is Python's own KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import attrs

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class Dropped(BaseException):
    """What was being done is dropped for a second signal. No library's `except Exception` may take
    it for an error of its own."""


@attrs.define
class StopRequest:
    """What signals have asked for so far.

    Attributes:
        signal_name: The first signal; None if there was none.
        patient: There is a step to finish first; if not, the first signal ends the run at once.
        hurried: There was a second signal.
        alone: There are no other ranks, which would wait for what is dropped here.
    """

    signal_name: str | None = None
    patient: bool = False
    hurried: bool = False
    alone: bool = True
    _droppable: bool = False
    _process: int = attrs.field(factory=os.getpid)

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """A block that a second signal leaves at once, by raising Dropped; also one that came
        before it."""
        if self.hurried and self.alone:
            raise Dropped
        self._droppable = self.alone
        try:
            yield
        finally:
            self._droppable = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler. The workers of a loader inherit it, and a signal to all processes
        reaches them too: they go on until this process ends them."""
        if os.getpid() != self._process:
            return
        first = not self
        if first:
            self.signal_name = signal.Signals(number).name
        if not self.patient or self.hurried:
            raise KeyboardInterrupt
        if not first:
            self.hurried = True
            if self._droppable:
                raise Dropped


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, SIGINT, SIGTERM and SIGUSR1 (where there is one) are requests.

    Outside the main thread nothing is installed: Python allows handlers only there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = [name for name in SIGNALS if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), request.handle) for name in names}
    try:
        yield request
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
