"""LoRA under tensor parallelism: a linear layer and its two factors, cut together.

Cut by output features, `W` and `B` are cut and `A` is whole; cut by input features, `W` and `A` are
cut and `B` is whole. Either way a rank computes `W x + scale B A x` with the parts that it has,
without talking to the others, and the layer's result is put together as without an adapter. The
factor that is whole is given only this rank's share of its gradient, which is summed later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle

FACTORS = {"lora_A", "lora_B"}


@attrs.frozen
class Cut:
    """How the parts of an adapted linear layer are laid out over the ranks.

    Attributes:
        parameters: Of each parameter.
        partial: The parameter whose gradient a rank has a share of.
        inputs: What a rank needs of the layer's input.
        outputs: What a rank computes of the layer's output.
    """

    parameters: Mapping[str, Placement]
    partial: str
    inputs: Placement
    outputs: Placement


COLWISE = Cut(
    {"weight": Shard(0), "bias": Shard(0), "lora_A": Replicate(), "lora_B": Shard(0)},
    partial="lora_A",
    inputs=Replicate(),
    outputs=Shard(-1),
)
ROWWISE = Cut(
    {"weight": Shard(1), "bias": Replicate(), "lora_A": Shard(1), "lora_B": Replicate()},
    partial="lora_B",
    inputs=Shard(-1),
    outputs=Partial(),
)


def is_adapted_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer with LoRA's two factors and scale, and with no more tensors."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    known = FACTORS <= names <= FACTORS | {"weight", "bias"} and buffers <= {"lora_scale"}
    return isinstance(module, nn.Linear) and known


def cut_adapted_linear(module: nn.Linear, mesh: DeviceMesh, style: ParallelStyle) -> None:
    """Cut it in place, to take and give what PyTorch's `style` takes and gives."""
    cut = COLWISE if isinstance(style, ColwiseParallel) else ROWWISE
    for name, parameter in list(module.named_parameters(recurse=False)):
        part = distribute_tensor(parameter, mesh, [cut.parameters[name]], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(part, requires_grad=parameter.requires_grad))
    module.forward = _local_forward(module, module.forward, mesh, cut, style)


def _local_forward(
    module: nn.Linear,
    compute: Callable[[torch.Tensor], torch.Tensor],
    mesh: DeviceMesh,
    cut: Cut,
    style: ParallelStyle,
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        """`[..., features_in]` to `[..., features_out]`, or a rank's part of either."""
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, style.input_layouts, run_check=False)
        needed = x.redistribute(placements=[cut.inputs])
        with local_parameters(module, cut):
            output = compute(needed.to_local(grad_placements=gradient_of(needed)))
        whole = DTensor.from_local(output, mesh, [cut.outputs], run_check=False)
        given = whole.redistribute(placements=style.output_layouts)
        return given.to_local() if style.use_local_output else given

    return forward


def gradient_of(needed: DTensor) -> list[Placement]:
    """What a rank computes of its input's gradient: all of its part, or a share of the whole."""
    return [Partial() if each.is_replicate() else each for each in needed.placements]


@contextmanager
def local_parameters(module: nn.Linear, cut: Cut) -> Iterator[None]:
    """Within it, the module's parameters are this rank's parts of them, as plain tensors."""
    whole = dict(module._parameters)
    for name, parameter in whole.items():
        if parameter is None:
            continue
        gradient = Partial() if name == cut.partial else cut.parameters[name]
        local = parameter.to_local(grad_placements=[gradient])
        if name == "bias" and cut is ROWWISE:  # every rank adds its share of the one bias
            local = local / parameter.device_mesh.size()
        module._parameters[name] = local
    try:
        yield
    finally:
        module._parameters.update(whole)
