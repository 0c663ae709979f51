"""What other packages' losses need is said by name."""

import importlib.util

import pytest
import torch

from automodel_core.errors import UserError
from automodel_losses.packaged import CutCrossEntropy, LigerFusedLinearCrossEntropy, linear_of
from tests.plugins.losses.reference import (
    drawn,
    linear_head,
    reference,
    with_gradients,
)

PACKAGES = {
    "liger_kernel": ("liger-kernel", LigerFusedLinearCrossEntropy),
    "cut_cross_entropy": ("cut-cross-entropy", CutCrossEntropy),
}


@pytest.mark.parametrize("module", PACKAGES)
def test_without_its_package_a_loss_says_what_to_install(monkeypatch, module):
    package, loss = PACKAGES[module]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        loss()
    assert f"pip install {package}" in refused.value.fix


@pytest.mark.parametrize("module", PACKAGES)
def test_without_a_gpu_a_loss_names_the_one_that_works(monkeypatch, module):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as refused:
        PACKAGES[module][1]()
    assert "fused_linear_ce" in refused.value.fix


def test_a_head_that_is_no_product_is_refused():
    with pytest.raises(UserError) as refused:
        linear_of(lambda hidden: hidden, "cut_cross_entropy")
    assert refused.value.path == ("loss_fn",)


@pytest.mark.gpu
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("module", PACKAGES)
def test_on_a_gpu_it_gives_the_loss_and_the_gradients_of_float64(module, cap):
    pytest.importorskip(module)
    states, weight, labels = drawn(2, 64, 128, 512, supervised=0.7)
    states, weight = (0.3 * each.bfloat16().float() for each in (states, weight))
    states, weight = states.bfloat16(), weight.bfloat16()
    head = linear_head(weight, cap=cap)
    head.embeddings.cuda()
    ours = with_gradients(PACKAGES[module][1](), states.cuda(), labels.cuda(), head)
    expected = reference(states.float(), weight.float(), labels, cap=cap)
    for mine, right in zip(ours, expected, strict=True):
        assert (mine.cpu().double() - right).norm() < 0.02 * right.norm()
