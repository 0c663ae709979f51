"""Fused losses on a GPU, at a real vocabulary's size, against the definition in float64."""

import os
import subprocess
import sys

import pytest
import torch

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.head import Head
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy, softmax_on

pytestmark = pytest.mark.gpu

ROWS, HIDDEN, VOCABULARY = 512, 256, 128256


def exact(states, weight, labels, cap):
    states, weight = (each.double().requires_grad_() for each in (states, weight))
    logits = states @ weight.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    loss = torch.nn.functional.cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    loss.backward()
    return loss.detach(), states.grad, weight.grad


@pytest.mark.parametrize("loss", [ChunkedCrossEntropy, FusedLinearCrossEntropy])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("kind", ["bfloat16", "autocast", "frozen"])
def test_gradients_stay_near_float64(loss, cap, kind):
    assert softmax_on("cuda").__name__.endswith("softmax_triton")
    generator = torch.Generator("cuda").manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, device="cuda", generator=generator).bfloat16()
    weight = (0.1 * torch.randn(VOCABULARY, HIDDEN, device="cuda", generator=generator)).bfloat16()
    labels = torch.randint(VOCABULARY, (ROWS,), device="cuda", generator=generator)
    labels[::3] = IGNORE_INDEX
    expected = exact(states, weight, labels, cap)
    dtype = torch.float32 if kind == "autocast" else torch.bfloat16
    embeddings = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device="cuda", dtype=dtype)
    with torch.no_grad():
        embeddings.weight.copy_(weight)
    embeddings.requires_grad_(kind != "frozen")
    states = states.to(dtype).requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=kind == "autocast"):
        total = loss(chunk_len=200)(states, labels, Head(embeddings, cap=cap))
    total.backward()
    assert (total - expected[0]).abs() < 1e-3 * expected[0]
    for parameter, right in zip([states, embeddings.weight], expected[1:], strict=True):
        if parameter.requires_grad:
            assert parameter.grad.dtype == parameter.dtype
            assert (parameter.grad.double() - right).norm() < 0.01 * right.norm()


def test_without_a_compiler_pytorch_does_tritons_part(tmp_path):
    """Triton builds its launcher with the machine's C compiler."""
    code = (
        "from automodel_losses.fused_linear_ce import softmax_on; "
        "print(softmax_on('cuda').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CC": "/no/compiler", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["automodel_losses.softmax"]
    assert "Triton can't compile here" in done.stderr
