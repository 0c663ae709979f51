"""Runs that are disturbed, and whether they end as those that weren't, bit for bit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors.torch import load_file

from automodel_core.train import loop

# What no two runs share.
TIMINGS = {"tps", "memory_gib", "seconds", "data_seconds"}


@contextlib.contextmanager
def after_step(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something when a step has been logged, before anything is saved."""
    original = loop.report

    def report(run, late):
        original(run, late)
        if run.step == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "report", report)
        yield


def untimed(records: list[dict]) -> list[dict]:
    """The lines of a log without the clock's part."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records]


def tensors(run) -> dict[str, torch.Tensor]:
    """Weights and optimizer of a run's last checkpoint."""
    found = {}
    for path in sorted((run.folder / "latest").rglob("*.safetensors")):
        found |= {f"{path.parent.name}/{name}": t for name, t in load_file(path).items()}
    return found


def state(run) -> dict:
    """Cursor, random state and counts of a run's last checkpoint."""
    content = json.loads((run.folder / "latest" / "training" / "state.json").read_text())
    return {name: value for name, value in content.items() if name != "seconds"}


def assert_same_losses_and_tensors(found, expected) -> None:
    assert untimed(found.steps) == untimed(expected.steps)
    left, right = tensors(found), tensors(expected)
    assert left.keys() == right.keys()
    assert any("exp_avg" in name for name in left)
    assert all(torch.equal(left[name], right[name]) for name in right)


def assert_same_run(found, expected) -> None:
    """Logs, weights, optimizer, cursor and random state."""
    assert_same_losses_and_tensors(found, expected)
    assert untimed(found.validations) == untimed(expected.validations)
    assert state(found) == state(expected)
