"""What each wish for a dtype becomes, with and without adapters."""

import contextlib

import pytest
import torch

from automodel_core.errors import UserError
from automodel_core.train.precision import assert_precision, plan_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def gpu_has_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.parametrize(
    ("requested", "device", "adapters", "weights", "trains", "compute"),
    [
        ("auto", CPU, None, FP32, FP32, FP32),
        ("auto", GPU, None, FP32, FP32, BF16),
        (BF16, GPU, None, BF16, BF16, BF16),
        (FP16, GPU, None, FP32, FP32, FP16),
        ("auto", CPU, FP32, FP32, FP32, FP32),
        ("auto", GPU, FP32, BF16, FP32, BF16),
        (BF16, CPU, FP32, BF16, FP32, BF16),
        (BF16, GPU, BF16, BF16, BF16, BF16),
        (FP16, GPU, FP32, FP16, FP32, FP16),
        (FP32, GPU, FP32, FP32, FP32, FP32),
    ],
)
def test_the_plan(requested, device, adapters, weights, trains, compute):
    plan = plan_precision(requested, device, adapters)
    assert (plan.weights, plan.parameters, plan.compute) == (weights, trains, compute)
    assert plan.loss_scaling == (requested == FP16)
    plain = isinstance(plan.autocast(CPU), contextlib.nullcontext)
    assert plain == (weights == compute)


def test_float16_needs_a_gpu():
    with pytest.raises(UserError) as raised:
        plan_precision(FP16, CPU, FP32)
    assert raised.value.path == ("model", "torch_dtype")


def test_the_table_shows_adapters_apart():
    whole = [name for name, _ in plan_precision(BF16, CPU).rows()]
    assert whole[:2] == ["parameters", "compute"]
    rows = plan_precision(BF16, CPU, FP32).rows()
    assert rows[:2] == [("frozen weights", "bfloat16"), ("adapters", "float32")]


def test_only_what_trains_must_be_as_planned():
    model = torch.nn.Linear(2, 2).to(BF16)
    model.weight.requires_grad_(False)
    with pytest.raises(AssertionError, match="bias is"):
        assert_precision(model, plan_precision(BF16, CPU, FP32))
    model.bias.data = model.bias.data.float()
    assert_precision(model, plan_precision(BF16, CPU, FP32))
