"""The names under which both tools show the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping


def grouped(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """`loss` as `train/loss`, since a slash makes a panel; `step` is the axis, not a curve."""
    return {f"{group}/{name}": value for name, value in metrics.items() if name != "step"}
