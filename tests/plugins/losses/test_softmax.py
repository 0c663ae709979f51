"""The kernel between a loss's products, and what it is tested against, in float64.

Triton's interpreter runs the kernel where there is no GPU.
"""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_core.protocols import IGNORE_INDEX
from automodel_losses import softmax
from automodel_losses.softmax import Scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def triton_softmax():
    pytest.importorskip("triton")
    return importlib.import_module("automodel_losses.softmax_triton")


@pytest.fixture(scope="module", params=["torch", "triton"])
def kernels(request):
    if request.param == "torch":
        return softmax
    return request.getfixturevalue("triton_softmax")


def exact(logits, labels, scores):
    """By autograd in float64: the loss of each row, and the gradient of their sum."""
    logits = logits.double().requires_grad_()
    score = logits * scores.scale
    if scores.cap is not None:
        score = scores.cap * torch.tanh(score / scores.cap)
    losses = torch.nn.functional.cross_entropy(
        score, labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    losses.sum().backward()
    return losses.detach(), logits.grad


def losses_of(known, labels):
    largest, exponentials, target = known.double()
    return (largest + exponentials.log() - target).masked_fill(labels == IGNORE_INDEX, 0.0)


drawn_scores = st.builds(
    Scores, scale=st.sampled_from([1.0, 0.25]), cap=st.sampled_from([None, 2.0, 30.0])
)


def drawn(rows, width, supervised, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, width, generator=generator)
    labels = torch.randint(width, (rows,), generator=generator)
    dropped = torch.rand(rows, generator=generator) >= supervised
    return logits.to(DEVICE), labels.masked_fill(dropped, IGNORE_INDEX).to(DEVICE)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 6),
    width=st.sampled_from([1, 7, 64, 300]),
    supervised=st.sampled_from([0.0, 0.5, 1.0]),
    scores=drawn_scores,
    block=st.sampled_from([64, 512]),
    seed=st.integers(0, 2**16),
)
def test_logits_become_their_gradient_and_tell_their_loss(
    kernels, rows, width, supervised, scores, block, seed
):
    kernels.BLOCK = block  # so that a row is read in one part, or in several
    logits, labels = drawn(rows, width, supervised, seed)
    losses, gradient = exact(logits, labels, scores)
    ours = kernels.losses_then_gradient(logits, labels, scores)
    torch.testing.assert_close(ours.double(), losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    width=st.sampled_from([3, 7, 65]),
    cut=st.integers(0, 3),
    supervised=st.sampled_from([0.0, 0.5, 1.0]),
    scores=drawn_scores,
    seed=st.integers(0, 2**16),
)
def test_parts_of_a_vocabulary_tell_what_the_whole_would(
    kernels, width, cut, supervised, scores, seed
):
    logits, labels = drawn(5, width, supervised, seed)
    losses, gradient = exact(logits, labels, scores)
    parts = [(logits[:, :cut].clone(), 0), (logits[:, cut:].clone(), cut)]
    known = torch.stack([kernels.statistics(part, labels, scores, first) for part, first in parts])
    largest = known[:, 0].amax(dim=0)
    exponentials = (known[:, 1] * (known[:, 0] - largest).exp()).sum(dim=0)
    together = torch.stack([largest, exponentials, known[:, 2].sum(dim=0)])
    torch.testing.assert_close(losses_of(together, labels), losses, rtol=1e-5, atol=1e-5)
    for part, first in parts:
        kernels.to_gradient(part, labels, scores, largest + exponentials.log(), first)
    ours = torch.cat([part for part, _ in parts], dim=1)
    torch.testing.assert_close(ours.double(), gradient, rtol=1e-5, atol=1e-5)


def test_the_memory_between_rows_is_left_alone(kernels):
    logits, labels = drawn(4, 9, 1.0, 0)
    wide = torch.full((4, 12), 7.0, device=DEVICE)
    wide[:, :9] = logits
    kernels.losses_then_gradient(wide[:, :9], labels, Scores())
    kernels.losses_then_gradient(logits, labels, Scores())
    assert wide[:, 9:].eq(7.0).all()
    torch.testing.assert_close(wide[:, :9], logits)
