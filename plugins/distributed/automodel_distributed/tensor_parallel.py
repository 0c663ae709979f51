"""Tensor parallelism (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053) and sequence
parallelism (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198), in PyTorch's styles.

Modules go on taking and giving plain tensors; DTensors are seen inside them only. With sequence
parallelism a rank holds its part of the sequence between the layers, from the first layer's input
to the last norm's output; embeddings, masks and rotary tables are made for the whole sequence, and
attention sees all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.layers import layer_lists
from automodel_core.vocabulary import whole_unless_left
from automodel_distributed.adapted_linear import cut_adapted_linear, is_adapted_linear
from automodel_distributed.tp_plans import (
    Plan,
    Shape,
    check_divisible,
    known_shape,
    plan_for,
    with_sharded_head,
)


def parallelize_layers(
    model: PreTrainedModel, mesh: DeviceMesh, written: Plan | None, *, sequence_parallel: bool
) -> None:
    """Cut the layers of a model, in place; what is cut becomes DTensors on `mesh`.

    Args:
        model: May be on the meta device. With weights, they are the same on all ranks.
        mesh: The dim `tp`.
        written: The YAML's `tp_plan`.
        sequence_parallel: Also share the norms, along the sequence.

    Raises:
        UserError: There is no plan for this model, or it can't be cut in that way.
    """
    plan = with_sharded_head(model, plan_for(model, written))
    check_divisible(model, plan, mesh.size())
    shape = known_shape(model) if written is None else None
    if sequence_parallel and shape is None:
        raise UserError(
            f"Which norms of a {type(model).__name__} sequence parallelism may share isn't known "
            "for a plan of one's own, or of the model's.",
            fix="write sequence_parallel: false",
            argument="sequence_parallel",
        )
    between = Shard(1) if sequence_parallel else Replicate()
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    tied = _tied(model)
    for name, style in plan.items():
        _cut(model.get_submodule(name), name, style, mesh, between)
    head = model.get_output_embeddings()
    if "colwise_leave_output" in plan.values():
        head.register_forward_hook(lambda *call: whole_unless_left(call[-1]))
    if shape is not None:
        _gather_once(model, mesh, between)
    if sequence_parallel:
        _share_norms(model, shape, mesh)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():  # some styles make new ones that train
        parameter.requires_grad_(trainable[name])


def _cut(
    module: nn.Module, name: str, style: str, mesh: DeviceMesh, between: Replicate | Shard
) -> None:
    """Cut one module. `between` is the layout of what leaves a row-wise layer."""
    styles: Mapping[str, ParallelStyle] = {
        "colwise": ColwiseParallel(),
        "colwise_leave_output": ColwiseParallel(use_local_output=False),
        "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
        "rowwise": RowwiseParallel(output_layouts=between),
        "rowwise_split_input": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        # The dim doesn't matter to a norm over the last one, and heads are at 1 or at 2.
        "heads": SequenceParallel(sequence_dim=1, use_local_output=True),
    }
    kind = nn.Embedding if style == "embedding" else nn.Linear
    if style != "heads" and not isinstance(module, kind):
        raise UserError(
            f"{name} is a {type(module).__name__}, and {style} is for {kind.__name__}.",
            fix="write a distributed.tp_plan without it",
            argument="tp_size",
        )
    if is_adapted_linear(module):
        cut_adapted_linear(module, mesh, styles[style])
    elif hasattr(module, "lora_scale"):
        raise UserError(
            f"The adapter on {name} can't be cut: tensor parallelism knows LoRA's two factors on "
            "linear layers, and not DoRA's lengths, PiSSA's start or adapters of embeddings.",
            fix="use lora, rslora or lora_plus on linear layers, or write tp_size: 1",
            argument="tp_size",
        )
    else:
        parallelize_module(module, mesh, styles[style], src_data_rank=None)


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _gather_once(model: PreTrainedModel, mesh: DeviceMesh, between: Replicate | Shard) -> None:
    """Hand all projections of a block one DTensor, so that their gradients are summed at once."""
    hidden = {"hidden_states": between}, {"hidden_states": Replicate()}
    for layer in (layer for layers in layer_lists(model) for layer in layers):
        attention = PrepareModuleInput(
            input_kwarg_layouts=hidden[0], desired_input_kwarg_layouts=hidden[1]
        )
        parallelize_module(layer.self_attn, mesh, attention)
        feed_forward = PrepareModuleInput(input_layouts=between, desired_input_layouts=Replicate())
        parallelize_module(layer.mlp, mesh, feed_forward)


def _share_norms(model: PreTrainedModel, shape: Shape, mesh: DeviceMesh) -> None:
    (layers,) = layer_lists(model)
    layers[0].register_forward_pre_hook(partial(_split_sequence, mesh))
    for layer in layers:
        for norm in shape.norms:
            parallelize_module(
                layer.get_submodule(norm), mesh, SequenceParallel(use_local_output=True)
            )
    last = model.base_model.norm
    parallelize_module(last, mesh, SequenceParallel())
    gather = PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate())
    parallelize_module(last, mesh, gather)


def _split_sequence(
    mesh: DeviceMesh, _: nn.Module, inputs: tuple[Any, ...]
) -> tuple[torch.Tensor, ...]:
    """The first layer's hidden states, `[batch, sequence, hidden]`: this rank's part of them."""
    hidden_states, *others = inputs
    if hidden_states.shape[1] % mesh.size():
        raise ValueError(
            f"{hidden_states.shape[1]} positions can't be dealt to {mesh.size()} ranks"
        )
    whole = DTensor.from_local(hidden_states, mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=[Shard(1)]).to_local(), *others
