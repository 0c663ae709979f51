"""The low-rank product against its definition: values, gradients, dropout, precision, compile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from automodel_peft.low_rank import add_low_rank


def drawn(shape=(2, 5), features=(6, 7), rank=3, dtype=torch.float64, seed=0):
    """What a frozen layer made, its input, A and B; all with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*size):
        return torch.randn(*size, generator=generator, dtype=dtype).requires_grad_()

    features_in, features_out = features
    return (
        leaf(*shape, features_out),
        leaf(*shape, features_in),
        leaf(rank, features_in),
        leaf(features_out, rank),
    )


def plain(output, x, a, b, scale):
    return output + scale * (x @ a.T) @ b.T


def ours(output, x, a, b, scale, dropout=0.0):
    return add_low_rank(output, x, (a, b), torch.tensor(scale, dtype=torch.float64), dropout)


def with_gradients(function, tensors, *arguments):
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = function(*tensors, *arguments)
    result.square().sum().backward()
    return [result.detach(), *(tensor.grad for tensor in tensors)]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    features=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rank=st.integers(1, 4),
    scale=st.floats(0.1, 8.0),
    seed=st.integers(0, 1000),
)
def test_it_is_the_product_and_so_are_its_gradients(shape, features, rank, scale, seed):
    tensors = drawn(tuple(shape), features, rank, seed=seed)
    expected = with_gradients(plain, tensors, scale)
    torch.testing.assert_close(with_gradients(ours, tensors, scale), expected)


def test_gradients_with_dropout():
    def seeded(*tensors):
        torch.manual_seed(3)
        return ours(*tensors, 0.5, 0.3)

    assert torch.autograd.gradcheck(seeded, drawn())


def test_dropout_drops_its_share_and_keeps_the_mean():
    x, eye = torch.ones(200, 50), torch.eye(50)
    kept = ours(torch.zeros(200, 50), x, eye, eye, 1.0, 0.2)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert (kept == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_dropout_depends_on_the_generator_alone():
    def run(seed):
        torch.manual_seed(seed)
        return with_gradients(ours, drawn(), 1.0, 0.5)

    first, again, other = run(1), run(1), run(2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_a_frozen_input_gets_no_gradient():
    output, x, a, b = drawn()
    ours(output, x.detach(), a, b, 1.0, 0.5).sum().backward()
    assert x.grad is None
    assert a.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_in_float32_beside_a_smaller_model(dtype):
    output, x, a, b = drawn((64,), (128, 128), 8, dtype=torch.float32)
    low = [output.detach().to(dtype), x.detach().to(dtype), a, b]
    results = with_gradients(ours, low, 0.1)
    assert [each.dtype for each in results] == [dtype, dtype, dtype, torch.float32, torch.float32]
    expected = with_gradients(plain, [each.float() for each in low], 0.1)
    for mine, right in zip(results, expected, strict=True):
        assert (mine - right).norm() < 0.01 * right.norm()


def test_it_computes_in_what_autocast_made_of_the_layer():
    _, x, a, b = drawn(dtype=torch.float32)
    weight = torch.randn(7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = torch.nn.functional.linear(x, weight)
        result = ours(output, x, a, b, 1.0)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.dtype == a.grad.dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("reentrant", [True, False])
def test_it_is_the_same_under_activation_checkpointing(dropout, reentrant):
    def again(*tensors):
        return checkpoint(ours, *tensors, 0.5, dropout, use_reentrant=reentrant)

    def run(function):
        torch.manual_seed(4)
        arguments = () if function is again else (0.5, dropout)
        return with_gradients(function, drawn(), *arguments)

    assert all(map(torch.equal, run(ours), run(again)))


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    compiled = torch.compile(ours, fullgraph=True)
    expected = with_gradients(ours, drawn(), 0.5)
    torch.testing.assert_close(with_gradients(compiled, drawn(), 0.5), expected)


@pytest.mark.slow
def test_a_compiled_backward_draws_the_mask_of_its_forward():
    a, b = torch.eye(50, requires_grad=True), torch.eye(50, requires_grad=True)
    zero = torch.zeros(200, 50)
    compiled = torch.compile(ours, fullgraph=True)
    x = torch.ones(200, 50, requires_grad=True)
    kept = compiled(zero, x, a, b, 1.0, 0.2)
    kept.sum().backward()
    assert torch.equal(kept.detach(), x.grad)
    assert 0.1 < (x.grad == 0).float().mean() < 0.3
