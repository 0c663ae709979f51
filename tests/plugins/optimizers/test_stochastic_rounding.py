"""Random rounding that is right on average, inside an AdamW that is otherwise PyTorch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_optimizers.stochastic_rounding import StochasticAdamW, round_stochastically


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_expectation_is_the_exact_number():
    exact = torch.tensor([1.0 + 1 / 512, -3.0001, 1e-30, 0.3, 65504.1])
    rounded = round_stochastically(exact.expand(200_000, -1), generator()).double()
    step = (rounded.max(0).values - rounded.min(0).values).clamp(min=1e-45)
    error = (rounded.mean(0) - exact.double()).abs() / step
    assert (error < 0.01).all(), "4 standard errors of 200,000 draws"


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_a_number_goes_to_one_of_its_two_neighbours_and_stays_if_it_is_one(number):
    exact = torch.tensor([number] * 16)
    rounded = round_stochastically(exact, generator()).float()
    below = torch.tensor(number).view(torch.int32) & -65536
    around = torch.stack([below, below + 65536]).view(torch.float32)
    assert torch.isin(rounded, around).all()
    if float(torch.tensor(number).bfloat16()) == float(torch.tensor(number)):
        assert (rounded == exact).all()


def test_what_is_not_finite_stays_so():
    exact = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = round_stochastically(exact, generator())
    assert rounded[0] == float("inf")
    assert rounded[1] == float("-inf")
    assert rounded[2].isnan()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_float32_weights_it_is_pytorchs_adamw(weight_decay):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(50)) for _ in range(2))
    keys = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": weight_decay}
    first, second = StochasticAdamW([ours], **keys), torch.optim.AdamW([theirs], **keys)
    for _ in range(20):
        ours.grad = torch.randn(50)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def trained(optimizer_class, dtype, steps=300, **keys):
    """A weight of 1 whose gradient asks for +1e-5 a step."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
    optimizer = optimizer_class([weight], lr=1e-5, weight_decay=0.0, **keys)
    for _ in range(steps):
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
    return weight.detach().double().mean().item() - 1


def test_small_updates_that_bfloat16_loses_arrive():
    exact = trained(torch.optim.AdamW, torch.float32)
    assert trained(torch.optim.AdamW, torch.bfloat16) == 0.0
    assert trained(StochasticAdamW, torch.bfloat16) == pytest.approx(exact, rel=0.1)


def test_the_rounding_is_a_function_of_seed_and_step_alone():
    torch.manual_seed(1)
    first = trained(StochasticAdamW, torch.bfloat16, seed=3)
    torch.manual_seed(2)
    assert trained(StochasticAdamW, torch.bfloat16, seed=3) == first
    assert trained(StochasticAdamW, torch.bfloat16, seed=4) != first


def test_a_run_with_it_resumes_bitwise(automodel):
    from tests.same_run import assert_same_losses_and_tensors

    how = {
        "model": {"torch_dtype": "bfloat16"},
        "optimizer": {"_target_": "stochastic_adamw", "lr": 1e-4},
    }
    whole = automodel(how, folder="whole")
    assert whole.code == 0, whole.out
    assert "guard" not in whole.out, "weights that stay on purpose are no lost updates"
    automodel({**how, "step_scheduler": {"max_steps": 2}}, folder="parts")
    assert_same_losses_and_tensors(automodel(how, folder="parts"), whole)
