"""Parameters gathered to where they are used have the bits that PyTorch's way gives them."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from automodel_distributed.gather_in_place import gather_in_place

COPY_OUT = "fsdp::split_with_sizes_copy"


def layers(width):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, width), torch.nn.LayerNorm(width), torch.nn.Linear(width, 6)
    )


def sharded(model, in_place, policy, kept):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in (*model, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=not kept)
        if in_place:
            gather_in_place(unit)
    return model


def passes(model):
    """Of three steps: what comes out, then the shards of gradients; and how often parameters were
    copied out of a buffer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with torch.profiler.profile() as profile:
        for step in range(3):
            drawn = torch.Generator().manual_seed(10 * step + dist.get_rank())
            out = model(torch.randn(4, 8, generator=drawn).to(model[0].weight.dtype))
            out.float().square().sum().backward()
            found += [out.detach(), *(each.grad.to_local().clone() for each in model.parameters())]
            optimizer.step()
            optimizer.zero_grad()
    copies = sum(each.count for each in profile.key_averages() if each.key == COPY_OUT)
    return found, copies


def both_ways(width, compute, kept):
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    model = layers(width)
    theirs = passes(sharded(copy.deepcopy(model), False, policy, kept))
    ours = passes(sharded(model, True, policy, kept))
    again = passes(sharded(layers(width), False, policy, kept))  # nothing was left behind
    return ours, theirs, again


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("compute", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 7])
def test_the_bits_are_those_of_pytorchs_gathers(two_ranks, width, compute, kept):
    for (ours, copies), (theirs, theirs_copies), (again, copies_again) in two_ranks.run(
        both_ways, width, compute, kept
    ):
        assert all(map(torch.equal, ours, theirs))
        assert all(map(torch.equal, again, theirs))
        assert theirs_copies == copies_again > 0
        if width == 16:
            assert copies == 0
        else:  # 7 can't be cut in two equal parts; the last layer's 6 can
            assert 0 < copies < theirs_copies
