"""Gradients are measured in float32 and scaled as PyTorch scales them."""

import pytest
import torch

from automodel_core.gradients import clip_to, squared_norm


def gradients(dtype):
    torch.manual_seed(0)
    return [torch.randn(size).to(dtype) for size in ((300, 7), (1,), (64, 64))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_float64(dtype):
    whole = torch.cat([each.double().flatten() for each in gradients(dtype)])
    assert squared_norm(gradients(dtype)).sqrt().item() == pytest.approx(whole.norm().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.5, 1e6], ids=["above", "below"])
def test_scaling_is_pytorchs(dtype, max_norm):
    ours, theirs = gradients(dtype), gradients(dtype)
    norm = squared_norm(ours).sqrt()
    clip_to(ours, max_norm, norm)
    parameters = [torch.nn.Parameter(torch.zeros_like(each)) for each in theirs]
    for parameter, gradient in zip(parameters, theirs, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if dtype == torch.bfloat16 else 0, atol=0)


def test_each_dtype_is_scaled_on_its_own():
    mixed = gradients(torch.float32)[:1] + gradients(torch.bfloat16)[1:]
    clip_to(mixed, 1.0, torch.tensor(2.0))
    assert [each.dtype for each in mixed] == [torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(mixed[0], gradients(torch.float32)[0] / 2)
