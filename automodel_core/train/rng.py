"""The random state that training consumes (dropout, newly drawn weights). Never the sample order,
which is a pure function of the seed and the epoch."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def be_deterministic() -> None:
    """Let PyTorch refuse algorithms that may give other bits the next time.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


class StatefulRNG:
    """Seeds every generator at construction and saves and restores their states.

    Args:
        seed: The run's seed.
        ranked: Give each data-parallel rank its own stream.
        rank: This process's data-parallel rank.
    """

    def __init__(self, seed: int = 42, ranked: bool = True, rank: int = 0) -> None:
        seed_everything(seed + rank if ranked else seed)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers: it is saved as JSON."""
        name, keys, position, has_gauss, cached = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": [name, keys.tolist(), position, has_gauss, cached],
            "torch": torch.get_rng_state().tolist(),
            "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
