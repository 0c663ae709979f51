"""Logits that lie over ranks by their vocabulary have the loss and gradients of whole ones."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.vocabulary import cross_entropy_sum
from tests.ranks import Ranks


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request):
    ranks = Ranks(request.param)
    yield ranks
    ranks.stop()


def drawn(seed, tokens, vocabulary, ignored, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, tokens, vocabulary, generator=generator) * scale
    labels = torch.randint(vocabulary, (2, tokens), generator=generator)
    hidden = torch.rand(2, tokens, generator=generator) < ignored
    return logits.to(dtype), labels.masked_fill(hidden, IGNORE_INDEX)


@functools.cache
def mesh_of_all():
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def sharded(*case):
    """The loss, and a rank's part of the gradient put together, of three times the loss."""
    logits, labels = drawn(*case)
    parts = distribute_tensor(logits, mesh_of_all(), [Shard(-1)]).requires_grad_()
    loss = cross_entropy_sum(parts, labels)
    (3 * loss).backward()
    return loss.detach(), parts.grad.full_tensor()


def referee(*case):
    """PyTorch's own in float64, on the whole."""
    logits, labels = drawn(*case)
    logits = logits.double().requires_grad_()
    loss = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    (3 * loss).backward()
    return loss.detach(), logits.grad


def assert_alike(ranks, *case):
    loss, gradient = referee(*case)
    rounding = 2e-6 if case[-1] == torch.float32 else 1e-2
    for found, its_gradient in ranks.run(sharded, *case):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), loss, rtol=2e-6, atol=1e-4)
        torch.testing.assert_close(its_gradient.double(), gradient, rtol=rounding, atol=rounding)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.integers(1, 7),
    vocabulary=st.integers(1, 37),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_vocabulary_gives_the_loss_and_gradient_of_whole_logits_in_float64(ranks, **case):
    assert_alike(ranks, *case.values())


def test_large_logits_neither_overflow_nor_lose_the_label(ranks):
    assert_alike(ranks, 0, 5, 11, 0.2, 3e4, torch.float32)
