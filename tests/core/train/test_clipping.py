"""Clipping by the update is PyTorch's clipping and then the update, and rounds once less."""

import math
from functools import partial

import pytest
import torch

from automodel_core.config.schema import GuardSettings
from automodel_core.train.clipping import clipped_update, scales_gradients
from automodel_core.train.guards import Guards, LostUpdates
from automodel_core.train.one_process import OneProcess

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FUSED = {
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.05, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.05, amsgrad=True, fused=fused),
    "sgd": lambda p, fused: torch.optim.SGD(p, lr=0.05, fused=fused),
    "momentum": lambda p, fused: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, fused=fused
    ),
}
STEPS, MAX_NORM = 4, 7.0


def weights(device, dtype):
    torch.manual_seed(0)
    shapes = ((300, 7), (1,), (64, 64))
    return [torch.nn.Parameter(torch.randn(shape).to(device, dtype)) for shape in shapes]


def give_gradients(parameters, step):
    """Of norms 8, 16, 4 and 31: all but one are above MAX_NORM."""
    torch.manual_seed(1 + step)
    for each in parameters:
        drawn = torch.randn(each.shape).to(torch.bfloat16) * (0.1, 0.2, 0.05, 0.4)[step]
        each.grad = drawn.to(each.device, each.dtype)


def take_step(optimizer, max_norm, update=None):
    """As the loop does; the norm."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = OneProcess().clip(parameters, None if scales_gradients(optimizer) else max_norm)
    with clipped_update(optimizer, norm, max_norm):
        (update or optimizer.step)()
    return norm


def tensors(optimizer):
    """What an update changes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [each for p in parameters for each in optimizer.state[p].values() if each is not None]
    return [p.detach() for p in parameters] + [p.grad for p in parameters] + state


@pytest.mark.parametrize("max_norm", [MAX_NORM, 1e6, 0.0, None])
@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("device", DEVICES)
def test_a_clipped_update_is_clip_grad_norm_and_the_update(device, make, max_norm):
    ours, theirs = (make(weights(device, torch.float32), True) for _ in range(2))
    assert scales_gradients(ours)
    for step in range(STEPS):
        for optimizer in (ours, theirs):
            give_gradients(optimizer.param_groups[0]["params"], step)
        found = take_step(ours, max_norm)
        limit = math.inf if max_norm is None else max_norm
        norm = torch.nn.utils.clip_grad_norm_(theirs.param_groups[0]["params"], limit)
        theirs.step()
        torch.testing.assert_close(found, norm, rtol=1e-6, atol=0)
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert not hasattr(ours, "grad_scale")


@pytest.mark.parametrize(
    ("device", "make", "looked_at"),
    [
        ("cpu", "adamw", "exp_avg"),
        pytest.param("cuda", "adamw", "exp_avg", marks=pytest.mark.gpu),
        # On the CPU, PyTorch 2.13's kernel leaves most bfloat16 weights where they are.
        pytest.param("cuda", "sgd", None, marks=pytest.mark.gpu),
    ],
)
def test_in_bfloat16_it_is_closer_to_float64_than_scaling_first(device, make, looked_at):
    """Weights begin at zero: their own rounding would be larger than that of what is added."""

    def begin(dtype, fused):
        zeros = [torch.zeros_like(p).to(dtype) for p in weights(device, torch.bfloat16)]
        return FUSED[make]([torch.nn.Parameter(zero) for zero in zeros], fused)

    def results(optimizer):
        parameters = optimizer.param_groups[0]["params"]
        return [optimizer.state[p][looked_at] if looked_at else p.detach() for p in parameters]

    ours, theirs = begin(torch.bfloat16, True), begin(torch.bfloat16, True)
    referee = begin(torch.float64, False)
    for optimizer in (ours, theirs, referee):
        give_gradients(optimizer.param_groups[0]["params"], step=3)
    take_step(ours, MAX_NORM)
    for optimizer in (theirs, referee):
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_NORM)
        optimizer.step()
    once, twice = (
        sum((a - b).norm() for a, b in zip(results(each), results(referee), strict=True)).item()
        for each in (ours, theirs)
    )
    assert once < twice


def test_optimizers_that_may_not_look_at_grad_scale_are_given_scaled_gradients():
    class OfItsOwn(torch.optim.SGD):
        """Made for a GradScaler that is passed to `step`."""

        _step_supports_amp_scaling = True

        def step(self, closure=None, grad_scaler=None):
            for group in self.param_groups:
                for each in group["params"]:
                    each.data.sub_(group["lr"] * each.grad)

    for make in (torch.optim.SGD, OfItsOwn, partial(OfItsOwn, fused=True)):
        parameters = weights("cpu", torch.float32)
        before = [p.detach().clone() for p in parameters]
        give_gradients(parameters, step=3)
        take_step(make(parameters, lr=1.0), MAX_NORM)
        moved = torch.cat([(p - old).flatten() for p, old in zip(parameters, before, strict=True)])
        assert moved.norm().item() == pytest.approx(MAX_NORM, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_still_skipped(bad):
    optimizer = torch.optim.AdamW(weights("cpu", torch.float32), lr=0.1, fused=True)
    guards = Guards(GuardSettings(non_finite="skip"), print, LostUpdates.of(optimizer))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    parameters = optimizer.param_groups[0]["params"]

    def guarded_step(step):
        norm = OneProcess().clip(parameters, None)
        with clipped_update(optimizer, norm, MAX_NORM):
            guards.take_step(step, norm, optimizer, scaler)

    give_gradients(parameters, step=3)
    parameters[0].grad[0, 0] = bad
    guarded_step(1)
    for found, expected in zip(parameters, weights("cpu", torch.float32), strict=True):
        assert torch.equal(found, expected)
    give_gradients(parameters, step=3)
    guarded_step(2)
    only = torch.optim.AdamW(weights("cpu", torch.float32), lr=0.1, fused=True)
    give_gradients(only.param_groups[0]["params"], step=3)
    take_step(only, MAX_NORM)
    for found, expected in zip(tensors(optimizer), tensors(only), strict=True):
        assert torch.equal(found, expected), "as if the first step had never been"


def test_a_loss_scale_and_clipping_go_together():
    ours, theirs = (FUSED["adamw"](weights("cpu", torch.float32), True) for _ in range(2))
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2) for _ in range(2)]
    for step in range(STEPS):
        for optimizer, scaler in zip((ours, theirs), scalers, strict=True):
            parameters = optimizer.param_groups[0]["params"]
            scaler.scale(torch.zeros(()))  # makes the scale
            give_gradients(parameters, step)
            for each in parameters:
                each.grad *= scaler.get_scale()
            if step == 1:
                parameters[2].grad[0, 0] = math.inf
            scaler.unscale_(optimizer)
        take_step(ours, MAX_NORM, lambda: scalers[0].step(ours))
        torch.nn.utils.clip_grad_norm_(theirs.param_groups[0]["params"], MAX_NORM)
        scalers[1].step(theirs)
        for scaler in scalers:
            scaler.update()
    assert [each.get_scale() for each in scalers] == [8.0, 8.0]
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
