"""How far a long preparation is: whoever works reports it, whoever prints hears it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What is done, in a few words such as "48,000 rows tokenised", and the share of the whole if that
# is known, from 0 to 1.
Listener = Callable[[str, float | None], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(done: str, share: float | None = None) -> None:
    """Tell whoever listens, as often as you like."""
    listener = _listener.get()
    if listener is not None:
        listener(done, share)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within it, reports go to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
