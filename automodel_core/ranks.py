"""Which process of a run this is, as torchrun tells it through the environment."""

from __future__ import annotations

import os


def rank() -> int:
    """Among all processes; 0 keeps the run folder and talks to the user."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Among the processes of this machine; the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))
