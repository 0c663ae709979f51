"""Which of the processes of a run this one is, as the launcher says in the environment.

Read from the variables that torchrun sets, so that it can be asked before torch is imported and
outside a process group. A process that nobody launched is the only one: rank 0 of 1.
"""

from __future__ import annotations

import os


def rank() -> int:
    """This process among all of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those on this host, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))
