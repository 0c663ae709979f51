"""What is held, gathered and reduced in which dtype, and by which name."""

import attrs
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from automodel_core.train.precision import PrecisionPlan
from automodel_core.train.recompute import checkpoint_activations
from automodel_distributed import fully_sharded
from automodel_distributed.managers import FSDP2Manager
from automodel_distributed.meshes import copies_and_shards_of
from tests.plugins.distributed.training import (
    Case,
    build_mesh,
    build_model,
    loss_sum,
    micro_batch,
    train_alone,
    train_spread,
)

LORA = {"dim": 4, "alpha": 8}


@pytest.mark.parametrize("way", ["DDPManager", "FSDP2Manager"])
def test_float32_adapters_train_beside_a_bfloat16_model(two_ranks, way):
    case = Case(adapters=LORA, dtype=torch.bfloat16, steps=8)
    alone = train_alone(case)
    for rank in two_ranks.run(train_spread, case, way, {}):
        assert rank.losses == pytest.approx(alone.losses, rel=5e-3)
        assert rank.norms == pytest.approx(alone.norms, rel=5e-2)
        assert {tensor.dtype for tensor in rank.state.values()} == {torch.float32}


def spread_out(case, precision, reshard_after_forward="auto"):
    """A model after one step's passes: what each parameter is, and the loss."""
    manager = FSDP2Manager(reshard_after_forward=reshard_after_forward)
    mesh = build_mesh(manager.sizes(dist.get_world_size()))
    model = build_model(case)
    names, state_names = [n for n, _ in model.named_parameters()], list(model.state_dict())
    checkpoint_activations(model, case.recompute)
    manager.parallelize(model, mesh, precision)
    inputs, labels = micro_batch(case, 0, 0)
    rank = dist.get_rank()
    with manager.micro_batch(model, last=True):
        loss = loss_sum(model(input_ids=inputs[rank::2]).logits, labels[rank::2])
        loss.backward()
    with torch.no_grad():
        logits = model(input_ids=inputs[rank::2]).logits
    found = [
        (
            isinstance(p, DTensor),
            p.requires_grad,
            p.dtype,
            p.grad.dtype if p.requires_grad else None,
        )
        for p in model.parameters()
    ]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == state_names
    return set(found), logits.dtype, loss.item()


@pytest.mark.parametrize("checkpointing", [None, "full", "selective"])
def test_units_hold_one_dtype_and_parameters_keep_their_names(two_ranks, checkpointing):
    """Older PyTorch asks for one original dtype in every unit of FSDP2."""
    precision = PrecisionPlan(torch.float32, torch.bfloat16, False, "", frozen=torch.bfloat16)
    case = Case(adapters=LORA, dtype=torch.bfloat16, recompute=checkpointing)
    for found, *_ in two_ranks.run(spread_out, case, precision):
        assert found == {
            (True, False, torch.bfloat16, None),
            (False, True, torch.float32, torch.float32),
        }


@pytest.mark.parametrize("freed", [True, False])
def test_float32_weights_are_gathered_in_the_dtype_of_products(two_ranks, freed):
    """And after a pass without gradients all are shards again, whether layers are freed or kept."""
    precision = PrecisionPlan(torch.float32, torch.bfloat16, False, "")
    ranks = two_ranks.run(spread_out, Case(), precision, freed)
    for found, logits, _ in ranks:
        assert found == {(True, True, torch.float32, torch.float32)}
        assert logits == torch.bfloat16
    case = attrs.evolve(Case(), steps=1, accumulate=1)
    _, labels = micro_batch(case, 0, 0)
    summed = train_alone(case).losses[0] * int((labels != -100).sum())
    assert sum(loss for *_, loss in ranks) == pytest.approx(summed, rel=2e-2)


def trained_by_a_policy(case, policy):
    """As `train_spread`, with PyTorch told directly what gradients are reduced in."""
    chosen = fully_sharded.mixed_precision
    fully_sharded.mixed_precision = lambda *_: policy
    try:
        return train_spread(case, "FSDP2Manager", {})
    finally:
        fully_sharded.mixed_precision = chosen


def test_what_two_ranks_send_in_bfloat16_has_the_bits_of_a_sum_in_float32(two_ranks):
    case = Case(dtype=torch.bfloat16, steps=5)
    in_float32 = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    ours = two_ranks.run(train_spread, case, "FSDP2Manager", {})
    plain = two_ranks.run(trained_by_a_policy, case, in_float32)
    for one, other in zip(ours, plain, strict=True):
        assert one.losses == other.losses
        assert one.norms == other.norms
        assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


def reduced_in(precision, layout):
    manager = FSDP2Manager(**layout)
    mesh = copies_and_shards_of(build_mesh(manager.sizes(dist.get_world_size())))
    return fully_sharded.mixed_precision(precision, mesh).reduce_dtype


def test_only_two_ranks_of_bfloat16_weights_send_bfloat16(two_ranks, four_ranks):
    weights = PrecisionPlan(torch.bfloat16, torch.bfloat16, False, "")
    masters = PrecisionPlan(torch.float32, torch.bfloat16, False, "")
    assert set(two_ranks.run(reduced_in, weights, {})) == {torch.bfloat16}
    assert set(two_ranks.run(reduced_in, masters, {})) == {torch.float32}
    assert set(four_ranks.run(reduced_in, weights, {})) == {torch.float32}
    assert set(four_ranks.run(reduced_in, weights, {"dp_replicate_size": 2})) == {torch.float32}
