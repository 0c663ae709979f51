import pytest

from automodel_core.config.schema import StepScheduler
from automodel_core.errors import UserError
from automodel_core.train.data import plan_layout


@pytest.mark.parametrize(
    ("keys", "ranks", "accumulation"),
    [
        ({}, 1, 1),
        ({"grad_acc_steps": 4}, 2, 4),
        ({"global_batch_size": 32}, 1, 8),
        ({"global_batch_size": 32}, 4, 2),
        ({"global_batch_size": 32, "grad_acc_steps": 2}, 4, 2),
    ],
)
def test_global_batch_size_is_kept_whatever_the_ranks(keys, ranks, accumulation):
    assert plan_layout(StepScheduler(**keys), 4, ranks).grad_acc_steps == accumulation


@pytest.mark.parametrize(
    "keys", [{"global_batch_size": 30}, {"global_batch_size": 32, "grad_acc_steps": 3}]
)
def test_numbers_that_do_not_fit_are_refused_with_the_arithmetic(keys):
    with pytest.raises(UserError, match="batch_size 4 x 4 rank"):
        plan_layout(StepScheduler(**keys), 4, 4)
