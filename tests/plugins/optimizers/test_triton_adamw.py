"""AdamW's update in one kernel is PyTorch's, on any tensors; Triton's interpreter runs it here."""

import math
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from automodel_core.train.clipping import scales_gradients
from automodel_optimizers.triton_adamw import TritonAdamW, fits_kernel

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 3
# Beyond a chunk, of whole loads and not, a scalar, and nothing at all.
SHAPES = ((5, 7), (64, 520), (), (0, 4), (48,))
RATES = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}


def parameters(shapes=SHAPES, dtype=torch.float32, offset=0):
    """They may begin in the middle of a piece of memory, as a rank's part can."""
    made = []
    for number, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(number)
        whole = torch.zeros(math.prod(shape) + offset, device=DEVICE, dtype=dtype)
        part = whole[offset:].copy_(torch.randn(math.prod(shape), generator=generator))
        made.append(torch.nn.Parameter(part.view(shape)))
    return made


def take_steps(optimizer, steps=STEPS, first=0, **scalars):
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    for step in range(first, first + steps):
        for number, each in enumerate(trained):
            generator = torch.Generator().manual_seed(100 * step + number + 50)
            drawn = torch.randn(each.shape, generator=generator).bfloat16()
            each.grad = drawn.to(each.device, each.dtype)
        vars(optimizer).update(scalars)
        optimizer.step()
    state = [optimizer.state[each] for each in trained]
    return [each.detach() for each in trained], [
        value.float() for each in state for value in each.values()
    ]


def close(found, expected, rtol=2e-6, atol=1e-6):
    for ours, right in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(ours.float(), right.float(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("offset", [0, 3])
def test_it_is_pytorchs_update_by_a_kernel_of_its_own(offset, monkeypatch):
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_fused_adam", None)
    ours = TritonAdamW(parameters(offset=offset), fused=True, **RATES)
    theirs = torch.optim.AdamW(parameters(), fused=False, **RATES)
    close(take_steps(ours), take_steps(theirs))


def test_low_precision_is_float64_rounded_once():
    dtype = torch.float16  # the interpreter cuts bfloat16 off instead of rounding it
    ours = TritonAdamW(parameters(dtype=dtype), fused=True, **RATES)
    doubles = [torch.nn.Parameter(p.detach().double()) for p in parameters(dtype=dtype)]
    exact = torch.optim.AdamW(doubles, fused=False, **RATES)
    found, right = take_steps(ours, 1), take_steps(exact, 1)
    for one, other in zip(found[0] + found[1], right[0] + right[1], strict=True):
        rounded = other.to(dtype).to(one.dtype)
        width = torch.finfo(dtype).eps * rounded.abs().float()
        assert ((one.float() - other.float()).abs() <= 0.51 * width + 1e-7).all()


def test_weights_of_both_precisions_are_updated_together():
    def mixed(kind, fused):
        wide, narrow = parameters(), parameters(dtype=torch.bfloat16)
        return kind([{"params": wide + narrow[:2], "lr": 0.01}, {"params": narrow[2:]}],
                    fused=fused, **RATES)  # fmt: skip

    close(
        take_steps(mixed(TritonAdamW, True)),
        take_steps(mixed(torch.optim.AdamW, False)),
        0.02,
        0.02,
    )


def test_it_goes_on_from_pytorchs_state_and_pytorch_from_its():
    whole = take_steps(torch.optim.AdamW(parameters(), fused=False, **RATES), 2 * STEPS)
    for kinds in ((TritonAdamW, torch.optim.AdamW), (torch.optim.AdamW, TritonAdamW)):
        first, second = (kind(parameters(), fused=kind is TritonAdamW, **RATES) for kind in kinds)
        trained = first.param_groups[0]["params"]
        take_steps(first)
        for one, other in zip(second.param_groups[0]["params"], trained, strict=True):
            one.data.copy_(other)
        state = first.state_dict()
        for group in state["param_groups"]:
            group["fused"] = kinds[1] is TritonAdamW
        second.load_state_dict(state)
        close(take_steps(second, first=STEPS), whole)


def test_gradients_are_scaled_as_they_are_read_and_stay_what_they_are():
    ours = TritonAdamW(parameters(), fused=True, **RATES)
    assert scales_gradients(ours)
    theirs = torch.optim.AdamW(parameters(), fused=False, **RATES)
    found = take_steps(ours, 1, grad_scale=torch.tensor(4.0, device=DEVICE))
    gradients = [each.grad.clone() for each in ours.param_groups[0]["params"]]
    for each, gradient in zip(theirs.param_groups[0]["params"], gradients, strict=True):
        each.grad = gradient / 4
    theirs.step()
    trained = theirs.param_groups[0]["params"]
    state = [v.float() for each in trained for v in theirs.state[each].values()]
    close(found, ([each.detach() for each in trained], state))


def test_a_step_with_infinite_gradients_changes_and_counts_nothing():
    ours = TritonAdamW(parameters(), fused=True, **RATES)
    before = take_steps(ours)
    before = [[each.clone() for each in some] for some in before]
    after = take_steps(ours, 1, found_inf=torch.tensor(1.0, device=DEVICE))
    assert all(map(torch.equal, before[0] + before[1], after[0] + after[1]))
    close(
        take_steps(ours, 1, first=STEPS, found_inf=torch.tensor(0.0, device=DEVICE)),
        take_steps(torch.optim.AdamW(parameters(), fused=False, **RATES), STEPS + 1),
    )


def test_parameters_without_gradients_are_left_alone():
    trained = parameters()
    ours = TritonAdamW(trained, fused=True, **RATES)
    trained[0].grad = torch.ones_like(trained[0])
    before = [each.detach().clone() for each in trained]
    ours.step()
    assert not torch.equal(trained[0], before[0])
    assert all(map(torch.equal, trained[1:], before[1:]))
    assert list(ours.state) == trained[:1]


@pytest.mark.parametrize("asked", [{"amsgrad": True}, {"maximize": True}, {"fused": False}])
def test_what_the_kernel_does_not_do_pytorch_does(asked):
    rates = RATES | {"fused": True} | asked
    ours, theirs = TritonAdamW(parameters(), **rates), torch.optim.AdamW(parameters(), **rates)
    found, right = take_steps(ours), take_steps(theirs)
    assert not fits_kernel(ours.param_groups[0], ours.state)
    assert all(map(torch.equal, found[0] + found[1], right[0] + right[1]))


def test_gradients_may_lie_otherwise_than_their_weights():
    (ours,), (theirs,) = parameters([(30, 20)]), parameters([(30, 20)])
    optimizer = TritonAdamW([ours], fused=True, **RATES)
    reference = torch.optim.AdamW([theirs], fused=False, **RATES)
    gradient = torch.linspace(-1, 1, 600, device=DEVICE).view(20, 30)
    ours.grad, theirs.grad = gradient.t(), gradient.t()
    assert fits_kernel(optimizer.param_groups[0], optimizer.state)
    optimizer.step()
    reference.step()
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


def test_means_of_another_dtype_are_not_read_as_if_they_were_alike():
    trained = parameters([(6, 4)])
    optimizer = TritonAdamW(trained, fused=True, **RATES)
    take_steps(optimizer, 1)
    optimizer.state[trained[0]]["exp_avg"] = optimizer.state[trained[0]]["exp_avg"].bfloat16()
    trained[0].grad = torch.ones_like(trained[0])
    assert not fits_kernel(optimizer.param_groups[0], optimizer.state)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=5),
    offset=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shapes_anywhere_in_memory(shapes, offset, dtype):
    ours = TritonAdamW(parameters(shapes, dtype, offset), fused=True, **RATES)
    theirs = torch.optim.AdamW(parameters(shapes, dtype), fused=False, **RATES)
    limit = 2e-6 if dtype == torch.float32 else 0.02
    close(take_steps(ours, 1), take_steps(theirs, 1), limit, limit)
