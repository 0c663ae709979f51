"""The first values of every learning-rate style are pinned, with the arithmetic written out."""

import math

import pytest

from automodel_core.config.schema import LRScheduler, StepScheduler
from automodel_core.errors import UserError
from automodel_core.train.schedule import Horizon, check_schedule, learning_rate, plan_horizon


def rates(steps, total, peak=1.0, **keys):
    schedule = LRScheduler(**keys)
    return [learning_rate(step, peak, schedule, total) for step in steps]


def test_warmup_starts_at_lr_over_warmup_steps():
    assert rates([1, 2, 3, 4, 5], 10, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_stays():
    assert rates([1, 5, 10], 10) == [1.0, 1.0, 1.0]


def test_cosine_is_the_cosine_of_the_share_done():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * done / 8)) / 2 for done in (0, 1, 7)]
    got = rates([3, 4, 10], 10, lr_decay_style="cosine", min_lr=0.1, warmup_steps=2)
    assert got == pytest.approx(expected)


def test_linear_falls_by_equal_parts():
    assert rates([1, 2, 3, 4], 4, lr_decay_style="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_inverse_square_root_joins_the_warmup_without_a_jump():
    got = rates([4, 16, 64], 100, lr_decay_style="inverse-square-root", warmup_steps=4)
    assert got == pytest.approx([1.0, 0.5, 0.25])


def test_wsd_is_flat_and_then_falls_over_decay_steps():
    got = rates([2, 6, 7, 8, 10], 10, lr_decay_style="WSD", decay_steps=4)
    assert got == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.25])


@pytest.mark.parametrize(
    ("keys", "total"),
    [
        ({}, 10),
        ({"num_epochs": 3}, 30),
        ({"max_steps": 7}, 7),
        ({"max_steps": 50}, 50),
        ({"max_steps": 50, "num_epochs": 2}, 20),
        ({"max_steps": 15, "num_epochs": 2}, 15),
    ],
)
def test_whichever_of_max_steps_and_num_epochs_ends_first_ends_the_run(keys, total):
    assert plan_horizon(StepScheduler(**keys), 10) == Horizon(10, total)


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match="never be reached"):
        check_schedule(LRScheduler(warmup_steps=10), Horizon(10, 10))


def test_decay_steps_without_wsd_is_refused():
    with pytest.raises(UserError, match="WSD"):
        check_schedule(LRScheduler(decay_steps=2), Horizon(10, 10))
