"""LoRA's kernels on a GPU in the precisions that are trained in, against float64."""

import pytest
import torch

from automodel_peft.lean_linear import METHODS, lora_linear
from automodel_peft.lora import PeftConfig
from tests.gpu.test_adapters import losses

pytestmark = pytest.mark.gpu
# Tokens, features in and out.
SHAPES = [(513, 1000, 776), (2048, 512, 4096)]
LIMITS = {torch.bfloat16: 0.01, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [4, 64, 256])
@pytest.mark.parametrize(
    ("dtype", "factors"),
    [(torch.bfloat16, torch.bfloat16), *((each, torch.float32) for each in LIMITS)],
)
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients(method, dtype, factors, rank, shape):
    tokens, features_in, features_out = shape
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*size, kind=dtype):
        return torch.randn(size, generator=generator, device="cuda").to(kind)

    x, dy = drawn(tokens, features_in).requires_grad_(), drawn(tokens, features_out)
    weight, bias = drawn(features_out, features_in), drawn(features_out)
    a = drawn(rank, features_in, kind=factors).requires_grad_()
    b = drawn(features_out, rank, kind=factors).requires_grad_()
    scale = torch.tensor(0.5, device="cuda")
    y = lora_linear(x, weight, bias, (a, b), scale, method)
    found = [y, *torch.autograd.grad(y, (x, a, b), dy)]
    leaves = [each.detach().double().requires_grad_() for each in (x, a, b)]
    exact = (
        leaves[0] @ weight.double().t() + bias + 0.5 * (leaves[0] @ leaves[1].t()) @ leaves[2].t()
    )
    right = [exact, *torch.autograd.grad(exact, leaves, dy.double())]
    for ours, expected in zip(found, right, strict=True):
        assert (ours - expected).norm() < LIMITS[dtype] * expected.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_use_triton_trains_as_the_reference(compiled):
    def wrap(model):
        return torch.compile(model, fullgraph=True) if compiled else model

    expected = losses(PeftConfig, use_triton=False)
    assert losses(PeftConfig, use_triton=True, wrap=wrap) == pytest.approx(expected, rel=0.02)
