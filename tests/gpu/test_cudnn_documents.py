"""cuDNN's kernels for attention within documents, against float64."""

import itertools

import pytest
import torch

from automodel_models.attention import MEASURED_CUDNN, cudnn_version
from automodel_models.cudnn_documents import attend_within
from tests.plugins.models.documents import by_documents

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def package():
    if cudnn_version() < MEASURED_CUDNN:
        pytest.skip("no nvidia-cudnn-frontend, or an older cuDNN")


def drawn(tokens, heads, width):
    generator = torch.Generator("cuda").manual_seed(heads)
    made = torch.randn(tokens, heads, width, device="cuda", generator=generator)
    return made.bfloat16().requires_grad_()


def check(query, key, value, bounds, longest, within=0.02):
    """The result and the gradients, by their norm."""
    inputs = query, key, value
    told = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    found, expected = attend_within(*inputs, told, longest), by_documents(*inputs, bounds)
    gradient = drawn(*query.shape).detach()
    ours = torch.autograd.grad(found, inputs, gradient)
    right = torch.autograd.grad(expected, inputs, gradient.double())
    for one, other in zip([found, *ours], [expected, *right], strict=True):
        assert one.isfinite().all()
        assert (one.double() - other.double()).norm() < within * other.double().norm()


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    "lengths", [[512], [1, 127, 64, 320], [192, 100, 220], [30] * 17 + [2]], ids=str
)
def test_documents_are_attended_to_each_by_itself_and_so_are_gradients(lengths, width):
    bounds = [0, *itertools.accumulate(lengths)]
    empty = [512] * (32 - len(lengths))
    check(drawn(512, 8, width), drawn(512, 2, width), drawn(512, 2, width), bounds + empty, 512)


@pytest.mark.parametrize("lengths", [[64, 192, 256], [65, 100, 347]], ids=str)
def test_gradients_are_finite_where_all_scores_are_far_below_zero(lengths):
    """Padding inside a kernel's tile, scored 0, would be e^100 beside them
    (https://github.com/pytorch/pytorch/issues/196678)."""
    bounds = [0, *itertools.accumulate(lengths)]
    with torch.no_grad():
        query = (0.1 * drawn(512, 8, 64) + 4).requires_grad_()
        key = (0.1 * drawn(512, 2, 64) - 4).requires_grad_()
    assert (query[:, 0].float() @ key[:, 0].float().t()).max() / 8 < -100
    # Gradients of scores, rounded, times a large constant that they cancel.
    check(query, key, drawn(512, 2, 64), bounds, 512, within=0.2)
