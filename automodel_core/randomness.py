"""The state of the global random generators: Python's, and NumPy's and PyTorch's if in use."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def remember_randomness() -> Callable[[], None]:
    """Remember the state of every generator; returns the function that puts it back."""
    restore: list[Callable[[], None]] = []

    def remember(get: Callable[[], object], put: Callable[[object], object]) -> None:
        state = get()
        restore.append(lambda: put(state))

    remember(random.getstate, random.setstate)
    if numpy := sys.modules.get("numpy"):
        remember(numpy.random.get_state, numpy.random.set_state)
    if torch := sys.modules.get("torch"):
        remember(torch.get_rng_state, torch.set_rng_state)
        if torch.cuda.is_initialized():
            remember(torch.cuda.get_rng_state, torch.cuda.set_rng_state)

    def put_back() -> None:
        for each in restore:
            each()

    return put_back


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put back the state of every generator afterwards.

    A logger that draws a run id with `random` must not change anybody's dropout.
    """
    put_back = remember_randomness()
    try:
        yield
    finally:
        put_back()
