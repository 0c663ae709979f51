"""A frozen linear layer and its LoRA in one function, by every method, against float64.

Triton's interpreter runs the kernels where there is no GPU.
"""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from automodel_peft.lean_linear import METHODS, lora_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Tokens, features in and out, rank: beyond whole tiles, and several parts of a sum.
SHAPES = [(5, 7, 9, 3), (130, 150, 70, 17), (96, 32, 300, 64)]


@pytest.fixture(params=METHODS)
def method(request):
    if METHODS[request.param]:
        pytest.importorskip("triton")
    return request.param


def drawn(tokens, features_in, features_out, rank, dtype=torch.float32):
    """x, W, bias, A and B; W and the bias are frozen."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(tokens, features_in), (features_out, features_in), (features_out,),
             (rank, features_in), (features_out, rank)]  # fmt: skip
    made = [torch.randn(size, generator=generator).to(DEVICE) for size in sizes]
    made[:3] = [each.to(dtype) for each in made[:3]]
    return [each.requires_grad_(number not in (1, 2)) for number, each in enumerate(made)]


def run(function, tensors):
    """The result and the gradients of x, A and B."""
    leaves = [each.detach().clone().requires_grad_(each.requires_grad) for each in tensors]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), device=DEVICE, dtype=torch.float64)
    (result * weights.view(result.shape).to(result.dtype)).sum().backward()
    return [result.detach(), *(each.grad for each in leaves if each.requires_grad)]


def by(method):
    def function(x, weight, bias, a, b):
        return lora_linear(x, weight, bias, (a, b), torch.tensor(0.5, device=DEVICE), method)

    return function


def exact(x, weight, bias, a, b):
    return x @ weight.t() + bias + 0.5 * (x @ a.t()) @ b.t()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product_and_so_are_its_gradients(method, shape):
    tensors = drawn(*shape)
    found = run(by(method), tensors)
    for ours, right in zip(found, run(exact, [t.double() for t in tensors]), strict=True):
        assert ours.shape == right.shape
        assert (ours - right).norm() < 2e-6 * right.norm()


def test_a_second_time_gives_the_same_bits(method):
    tensors = drawn(*SHAPES[1])
    assert all(map(torch.equal, run(by(method), tensors), run(by(method), tensors)))


def test_a_frozen_input_gets_no_gradient(method):
    x, *others = drawn(*SHAPES[0])
    by(method)(x.detach(), *others).sum().backward()
    assert others[2].grad is not None
    assert x.grad is None


def test_it_takes_batches_and_gradients_that_lie_apart(method):
    x, *others = drawn(24, 16, 8, 4)
    batch = x.detach().view(2, 12, 16).transpose(0, 1)
    found = by(method)(batch, *others).transpose(0, 1)
    torch.testing.assert_close(found.reshape(24, 8), exact(x, *others), rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected = torch.autograd.grad(exact(x, *others).square().sum(), others[2])[0]
    torch.testing.assert_close(others[2].grad, expected, rtol=1e-4, atol=1e-3)


def test_it_is_the_same_under_activation_checkpointing(method):
    tensors = drawn(*SHAPES[0])

    def again(*leaves):
        return checkpoint(by(method), *leaves, use_reentrant=False)

    assert all(map(torch.equal, run(by(method), tensors), run(again, tensors)))


def test_the_operators_are_what_the_compiler_is_told():
    x, weight, bias, a, b = drawn(*SHAPES[0])
    importlib.import_module("automodel_peft.lean_linear")
    torch.library.opcheck(
        torch.ops.automodel_peft.lora_linear.default,
        (x, weight, bias, a, b, torch.tensor(0.5, device=DEVICE), "lean"),
    )


def test_it_compiles_into_one_graph():
    tensors = drawn(*SHAPES[0])
    compiled = torch.compile(by("lean"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors), run(by("lean"), tensors))
