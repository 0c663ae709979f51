"""FSDP2: parameters, gradients and optimizer state spread over ranks, gathered a layer at a time.

`torch.distributed.fsdp.fully_shard` does the work. A unit, what is gathered at once, is a layer of
the model; embeddings, final norm and output embeddings make up one more, so tied weights are in one
unit and losses that call the head apart find it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from automodel_core.layers import layer_lists
from automodel_core.protocols import Precision
from automodel_distributed.gather_in_place import gather_in_place

T = TypeVar("T")
# Layers that take no more than this part of a device's memory stay gathered between the passes.
KEPT = 1 / 32


def shard(
    model: PreTrainedModel,
    mesh: DeviceMesh,
    precision: Precision,
    *,
    replicated: Sequence[nn.Parameter],
    reshard_after_forward: bool | Literal["auto"],
    cpu_offload: bool,
) -> None:
    """Make a model an FSDPModule, in place.

    Gradients become the sum over all ranks of the mesh, as if reduced in float32.

    Args:
        model: May be on the meta device.
        mesh: One dim to shard over, or two: to replicate over and to shard over.
        precision: Layers are gathered in its `compute`.
        replicated: Parameters to leave alone.
        reshard_after_forward: Whether layers are freed after the forward pass and gathered again
            in the backward pass; "auto" frees those that take more than KEPT of a GPU's memory.
        cpu_offload: Parameters, gradients and optimizer state stay in the host's memory.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": mixed_precision(precision, mesh),
        "offload_policy": offload if cpu_offload else OffloadPolicy(),
        "ignored_params": set(replicated),
    }
    stacks = layer_lists(model)
    if reshard_after_forward == "auto":
        reshard_after_forward = cpu_offload or not are_small(stacks, precision.compute, mesh)
    for layer in (layer for layers in stacks for layer in layers):
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    # Never freed between the passes: the head's backward comes right after its forward.
    fully_shard(model, reshard_after_forward=False, **options)
    _prefetch(model, stacks)
    for module in fsdp_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        gather_in_place(module)
    model.register_forward_hook(_free_after_evaluation)


def are_small(stacks: Sequence[Sequence[nn.Module]], dtype: torch.dtype, mesh: DeviceMesh) -> bool:
    """Whether the smallest GPU can well keep all layers whole, in this dtype: ranks that decided by
    themselves could wait for each other without end."""
    if mesh.device_type != "cuda":
        return False
    parameters = [each for layers in stacks for layer in layers for each in layer.parameters()]
    taken = sum(each.numel() for each in parameters) * dtype.itemsize
    memory = torch.tensor(torch.cuda.get_device_properties().total_memory)
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)  # on the host, where there is gloo always
    return taken <= KEPT * memory.item()


def fsdp_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Every unit, the whole model's first."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def set_reduction(model: FSDPModule, *, last: bool, sharded: bool) -> None:
    """What the next backward pass reduces.

    Gradients are summed over shards in every backward pass: kept whole until the last one, they
    would need the memory of the whole model. The sum over copies is left to the last.
    """
    model.set_is_last_backward(last)
    if sharded:
        model.set_requires_all_reduce(last)
    else:
        model.set_requires_gradient_sync(last)


def as_forward(model: FSDPModule, compute: Callable[..., T]) -> Callable[..., T]:
    """`compute` between the hooks that a forward pass of the whole model runs."""
    model._automodel_pass = compute
    register_fsdp_forward_method(model, "_automodel_pass")

    def run(*inputs: Any, **named: Any) -> T:
        output = model._automodel_pass(*inputs, **named)
        return _free_after_evaluation(model, inputs, output)

    return run


def _free_after_evaluation(model: FSDPModule, _: Any, output: Any) -> Any:
    """Without a backward pass to do it, what isn't freed after the forward pass would stay
    gathered, and be seen so by whoever saves."""
    if not torch.is_grad_enabled():
        for module in fsdp_modules(model):
            module.reshard()
    return output


def mixed_precision(precision: Precision, mesh: DeviceMesh) -> MixedPrecisionPolicy:
    """Gradients are summed in float32 and then take the weights' dtype. Between two ranks that is
    one addition, rounded once whichever comes first, so gradients of bfloat16 weights are sent as
    they are: half the bytes, the same bits."""
    differs = precision.compute != precision.weights
    two = mesh.ndim == 1 and mesh.size() == 2
    same_bits = two and not differs and precision.weights == torch.bfloat16
    return MixedPrecisionPolicy(
        param_dtype=precision.compute if differs else None,
        reduce_dtype=torch.bfloat16 if same_bits else torch.float32,
    )


def _prefetch(model: FSDPModule, stacks: Sequence[Sequence[FSDPModule]]) -> None:
    """Gather a layer while the one before computes, even if the CPU is behind."""
    for layers in stacks:
        for layer, following in pairwise(layers):
            layer.set_modules_to_forward_prefetch([following])
    if len(stacks) == 1:  # with several, such as a vision tower's, a batch may not need them all
        model.set_modules_to_forward_prefetch([stacks[0][0]])
