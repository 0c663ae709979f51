"""Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174): layers forget what
they computed and compute it again when the backward pass comes to them.

PyTorch's wrapper module for this would put itself into every parameter's name. Here the layer's own
`forward` is replaced, so that names stay, and hooks (FSDP2's are some) run outside and once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from automodel_core.config.schema import EveryLayer
from automodel_core.errors import UserError
from automodel_core.layers import layer_lists

# What `selective` keeps: the results that are dear to compute. The rest of a layer is element-wise.
# They are the operators that PyTorch has a formula of operations for, such as products and
# attention, or is given one by a plugin; and those that it counts otherwise.
COUNTED_OTHERWISE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def checkpoint_activations(model: PreTrainedModel, choice: str | bool | EveryLayer | None) -> None:
    """Make the layers of a model recompute, in training only.

    Args:
        model: Its layers are found by `layer_lists`.
        choice: "full" or True recomputes every layer; "selective" keeps matrix products and
            attention; `EveryLayer` recomputes the first of every n layers whole.

    Raises:
        UserError: The model has no layers to tell apart.
    """
    if choice in (None, False):
        return
    stacks = layer_lists(model)
    if not stacks:
        raise UserError(
            f"{type(model).__name__} has no list of layers that could be computed again.",
            fix="write activation_checkpointing: none",
            path=("activation_checkpointing",),
        )
    every = choice.every if isinstance(choice, EveryLayer) else 1
    options: dict[str, Any] = {"use_reentrant": False}
    if choice == "selective":
        options["context_fn"] = _keep_dear_results
    for layers in stacks:
        for layer in layers[::every]:
            layer.forward = _recomputed(layer, layer.forward, options)


def _recomputed(
    layer: nn.Module, forward: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    @functools.wraps(forward)
    def recomputed(*inputs: Any, **named: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            if "past_key_values" in named:  # computing again would add to a cache again
                named["past_key_values"] = None
            return checkpoint(forward, *inputs, **options, **named)
        return forward(*inputs, **named)

    return recomputed


def _keep_dear_results() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_whether_to_keep)


def _whether_to_keep(_: Any, operation: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    dear = (
        operation in COUNTED_OTHERWISE
        or getattr(operation, "_overloadpacket", None) in flop_registry
    )
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
