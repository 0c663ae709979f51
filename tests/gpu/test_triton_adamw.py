"""AdamW's kernel on a GPU, in the precisions that are trained in, beside float64."""

import pytest
import torch

from automodel_core.train.clipping import clipped_update
from automodel_core.train.one_process import OneProcess
from automodel_optimizers.triton_adamw import TritonAdamW, fits_kernel

pytestmark = pytest.mark.gpu
# A weight of several chunks, one whose size is odd, a norm, a scalar.
SHAPES = ((1024, 516), (1237, 3), (2048,), ())
RATES = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}
MAX_NORM = 7.0


def parameters(dtype, offset):
    """They begin in the middle of a piece of memory, where the widest loads may not be made."""
    made = []
    for number, shape in enumerate(SHAPES):
        generator = torch.Generator("cuda").manual_seed(number)
        drawn = torch.randn(shape, generator=generator, device="cuda").to(dtype)
        whole = torch.zeros(drawn.numel() + offset, device="cuda", dtype=dtype)
        made.append(torch.nn.Parameter(whole[offset:].copy_(drawn.flatten()).view(shape)))
    return made


def one_step(optimizer, trained, gradients):
    for each, gradient in zip(trained, gradients, strict=True):
        each.grad = gradient.to(each.dtype)
    norm = OneProcess().clip(trained, None)
    if isinstance(optimizer, TritonAdamW):
        with clipped_update(optimizer, norm, MAX_NORM):
            optimizer.step()
    else:
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
    state = [optimizer.state[each][name] for each in trained for name in ("exp_avg", "exp_avg_sq")]
    return [each.detach() for each in trained] + state


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_update_is_float64s_rounded_once(dtype, offset):
    trained = parameters(dtype, offset)
    generator = torch.Generator("cuda").manual_seed(9)
    gradients = [
        torch.randn(each.shape, generator=generator, device="cuda").bfloat16() for each in trained
    ]
    exact = [torch.nn.Parameter(each.detach().double()) for each in trained]
    ours = TritonAdamW(trained, fused=True, **RATES)
    found = one_step(ours, trained, gradients)
    right = one_step(torch.optim.AdamW(exact, fused=False, **RATES), exact, gradients)
    assert fits_kernel(ours.param_groups[0], ours.state)
    half = torch.finfo(dtype).eps / 2
    for one, other in zip(found, right, strict=True):
        # The norm, and so the share of a gradient that is left, is of float32.
        allowed = (half + 1e-5) * other.abs() + 1e-7
        assert ((one.double() - other).abs() <= allowed).all()


def test_a_second_time_gives_the_same_bits():
    def updated():
        trained = parameters(torch.bfloat16, 0)
        return one_step(
            TritonAdamW(trained, fused=True, **RATES), trained, [p.detach() for p in trained]
        )

    assert all(map(torch.equal, updated(), updated()))
