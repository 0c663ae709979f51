"""Turns of phrase that several messages share."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 1, cutoff: float = 0.6) -> str:
    """The nearest known names as a question; "" if none is near.

    Args:
        name: What was written.
        known: What could have been meant.
        limit: How many to offer at most.
        cutoff: How near a name must be, from 0 (anything) to 1 (the same).
    """
    import difflib  # only needed once something is wrong

    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=cutoff)
    return f"did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""
