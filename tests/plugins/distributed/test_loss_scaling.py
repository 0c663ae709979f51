"""float16's loss scale: one for all ranks, who take a step together or leave it out together."""

from functools import partial

import attrs
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.loss_scaling import AgreedScaler
from automodel_core.train.precision import PrecisionPlan
from automodel_distributed import managers
from tests.plugins.distributed.training import (
    Case,
    build_mesh,
    build_model,
    clip_and_update,
    loss_sum,
    micro_batch,
    optimizer_for,
    summed,
    trained_state,
)

CASE = Case(steps=8, accumulate=1)
OVERFLOWS = 4
# So that the scale also grows within these steps.
SCALER = {"init_scale": 1024.0, "growth_interval": 3}


@attrs.frozen
class Scaled:
    """Of each step: loss, norm of the gradient, and the scale after it; then the parameters."""

    losses: list[float]
    norms: list[float]
    scales: list[float]
    state: dict[str, torch.Tensor]


def poison(model):
    """One element of one gradient overflows, where this process holds it."""
    gradient = next(p.grad for p in model.parameters() if p.grad is not None)
    (gradient.to_local() if isinstance(gradient, DTensor) else gradient)[0, 0] = torch.inf


def scaled_alone(case):
    """The referee: PyTorch's own scaler in one process."""
    model, scaler = build_model(case), torch.amp.GradScaler("cpu", **SCALER)
    optimizer = optimizer_for(case, model)
    losses, norms, scales = [], [], []
    for step in range(case.steps):
        inputs, labels = micro_batch(case, step, 0)
        loss = loss_sum(model(input_ids=inputs).logits, labels) / (labels != IGNORE_INDEX).sum()
        scaler.scale(loss).backward()
        if step == OVERFLOWS:
            poison(model)
        scaler.unscale_(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), case.max_norm).item())
        losses.append(loss.item())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return Scaled(losses, norms, scales, trained_state(model))


def scaled_spread(case, way, options, compute=torch.float32, settings=SCALER, at=(OVERFLOWS,)):
    """This rank's part; at some steps the first rank's gradient overflows and no other's."""
    manager = getattr(managers, way)(**options)
    mesh = build_mesh(manager.sizes(dist.get_world_size()))
    model = build_model(case)
    plan = PrecisionPlan(torch.float32, compute, True, "")
    spread = manager.parallelize(model, mesh, plan)
    shards = mesh["dp_replicate"].size() * mesh["dp_shard"].size()
    rank = dist.get_rank() if shards > 1 else 0
    optimizer, scaler = optimizer_for(case, model), AgreedScaler("cpu", **settings)
    losses, norms, scales = [], [], []
    for step in range(case.steps):
        inputs, labels = micro_batch(case, step, 0)
        tokens = (labels != IGNORE_INDEX).sum()
        with manager.micro_batch(spread, last=True):
            logits = spread(input_ids=inputs[rank::shards]).logits
            loss = loss_sum(logits, labels[rank::shards]) / tokens
            scaler.scale(loss * manager.gradient_divisor(mesh)).backward()
        if step in at and dist.get_rank() == 0:
            poison(model)
        scaler.unscale_(optimizer)
        losses.append(summed(loss.detach(), mesh))
        norms.append(
            clip_and_update(
                manager, model, optimizer, case.max_norm, partial(scaler.step, optimizer)
            )
        )
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return Scaled(losses, norms, scales, trained_state(model))


@pytest.mark.parametrize(
    ("way", "options"),
    [("DDPManager", {}), ("FSDP2Manager", {}), ("FSDP2Manager", {"tp_size": 2})],
    ids=["ddp", "fsdp2", "tp"],
)
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_what_one_rank_alone_finds_is_left_out_by_all_and_the_rest_follows_one_process(
    two_ranks, way, options, fused
):
    case = attrs.evolve(CASE, fused_update=fused)
    alone = scaled_alone(case)
    assert alone.scales[OVERFLOWS] == alone.scales[OVERFLOWS - 1] / 2 < max(alone.scales)
    for rank in two_ranks.run(scaled_spread, case, way, options):
        assert rank.scales == alone.scales
        assert rank.losses == pytest.approx(alone.losses, rel=1e-5)
        finite = [step for step in range(CASE.steps) if step != OVERFLOWS]
        assert [rank.norms[step] for step in finite] == pytest.approx(
            [alone.norms[step] for step in finite], rel=1e-5
        )
        for name, tensor in alone.state.items():
            torch.testing.assert_close(rank.state[name], tensor, rtol=1e-4, atol=1e-5)


def test_float16_products_overflow_until_the_scale_fits_and_else_follow_float32(two_ranks):
    """In float32 nothing overflows by itself: the same steps are left out by hand."""
    start = {"init_scale": 2.0**22, "growth_interval": 1000}
    half = (torch.float16, start, ())
    first, second = two_ranks.run(scaled_spread, CASE, "FSDP2Manager", {}, *half)
    assert first.scales == second.scales
    before = [2.0**22, *first.scales]
    skipped = [step for step in range(CASE.steps) if before[step] != before[step + 1]]
    assert 0 < len(skipped) < CASE.steps - 2
    exact = (torch.float32, start, skipped)
    plain, _ = two_ranks.run(scaled_spread, CASE, "FSDP2Manager", {}, *exact)
    assert first.scales == plain.scales
    assert first.losses == pytest.approx(plain.losses, rel=2e-3)
    last = max(set(range(CASE.steps)) - set(skipped))
    assert first.norms[last] == pytest.approx(plain.norms[last], rel=1e-2)
