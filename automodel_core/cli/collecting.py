"""Python's cyclic garbage collector, kept out of commands that answer at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing meanwhile, nor what there is by then: for what a process does last.

    Classes and syntax trees are many objects that stay. The collector looks through all of them
    again and again as they are made, and twice more at exit: a quarter of what such a command took.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
