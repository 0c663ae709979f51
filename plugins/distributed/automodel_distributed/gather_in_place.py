"""FSDP2's gathers without the copies around them.

FSDP2 copies the shards of a unit into one buffer, gathers that, and copies each parameter out of
it, while the layer waits. Where a parameter is cut along its first dim into equal parts, these
parts lie one behind another in the whole one as well. So it can be gathered to where it is used,
and NCCL gathers all parameters of a unit in one call. The bytes are the same; on two H100s a step
of 147 ms took 5 less.

PyTorch has no switch for this: two of its functions are replaced, here and nowhere else, and do as
before for all units that `gather_in_place` wasn't called with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    AllGatherResult,
    DefaultAllGather,
    foreach_all_gather,
    foreach_all_gather_copy_out,
)
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam, ShardedState


class InPlace(DefaultAllGather):
    """The mark of a unit that is gathered in place; what can't be is gathered as by PyTorch."""


class GatheredInPlace(AllGatherResult):
    """Parameters that are whole once its event is reached; it keeps what they are gathered from."""


def gather_in_place(unit: FSDPModule) -> None:
    """From now on, gather this unit's parameters to where they are used."""
    unit.set_custom_all_gather(InPlace())
    _fsdp_param_group.foreach_all_gather = _gather
    _fsdp_param_group.foreach_all_gather_copy_out = _wait


def _is_cut_evenly(parameter: FSDPParam, ranks: int) -> bool:
    """Whether the parts of a parameter lie one behind another in it, and are sent as they are."""
    return (
        parameter.fsdp_placement.dim == 0
        and parameter._orig_size[0] % ranks == 0
        and parameter.sharded_state == ShardedState.SHARDED
        and not parameter.offload_to_cpu
        and not hasattr(parameter._sharded_local_tensor, "fsdp_pre_all_gather")
    )


@torch.no_grad()
def _gather(
    parameters: list[FSDPParam],
    group: dist.ProcessGroup,
    async_op: bool,
    copy_in_stream: torch.Stream,
    gather_stream: torch.Stream,
    device: torch.device,
    comm: Any,
) -> AllGatherResult | None:
    """In place of `foreach_all_gather`."""
    ranks = group.size()
    in_place = isinstance(comm, InPlace) and not async_op
    if not (in_place and all(_is_cut_evenly(each, ranks) for each in parameters)):
        return foreach_all_gather(
            parameters, group, async_op, copy_in_stream, gather_stream, device, comm
        )
    streams = torch.get_device_module(device)
    with streams.stream(copy_in_stream):  # what is computed in another dtype is cast
        inputs = _fsdp_collectives._get_param_all_gather_inputs(parameters)
    shards = [each for (each,) in inputs]
    for parameter, shard in zip(parameters, shards, strict=True):
        parameter.init_all_gather_outputs([shard.numel()], [shard.dtype], ranks, device)
        parameter.alloc_all_gather_outputs()
    wholes = [each for parameter in parameters for each in parameter.all_gather_outputs]
    # Their memory may be what layers before this one are still computed with.
    gather_stream.wait_stream(streams.current_stream())
    gather_stream.wait_stream(copy_in_stream)
    with (
        streams.stream(gather_stream),
        torch.autograd._unsafe_preserve_version_counter(tuple(wholes)),
    ):
        work = group.allgather_into_tensor_coalesced(wholes, shards)
        work.wait()
        event = gather_stream.record_event()
    return GatheredInPlace(shards, event, None, [], [], [])


@torch.no_grad()
def _wait(gathered: AllGatherResult, parameters: list[FSDPParam], group: dist.ProcessGroup) -> None:
    """In place of `foreach_all_gather_copy_out`: there is nothing to copy."""
    if not isinstance(gathered, GatheredInPlace):
        foreach_all_gather_copy_out(gathered, parameters, group)
        return
    device = gathered.all_gather_output[0].device
    torch.get_device_module(device).current_stream().wait_event(gathered.all_gather_event)
