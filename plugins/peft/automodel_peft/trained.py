"""Modules that train as a whole beside the adapters (`modules_to_save`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from automodel_peft.layers import mixed_with


class TrainedModule(nn.Module):
    """A module with weights of its own, held in the adapter's precision; mixed in before its class.

    It computes in the precision of the model around it, and hands on what that expects.

    Attributes:
        around: The dtype of the model around it.
    """

    around: torch.dtype

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """What the module's own class computes."""
        low = self.around != torch.float32
        device = next(self.parameters()).device.type
        with torch.autocast(device, dtype=self.around if low else None, enabled=low):
            outputs = super().forward(*inputs, **named_inputs)
        return tree_map_only(torch.Tensor, self._as_around, outputs)

    def _as_around(self, output: torch.Tensor) -> torch.Tensor:
        return output.to(self.around) if output.is_floating_point() else output


def train_whole(module: nn.Module, dtype: torch.dtype) -> None:
    """Make `module` train. Weights that it shared with another module are its own from now on."""
    around = next(module.parameters()).dtype
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            own = parameter.detach().to(dtype, copy=True)
            setattr(part, name, nn.Parameter(own, requires_grad=own.is_floating_point()))
    module.__class__ = mixed_with(TrainedModule, type(module))
    module.around = around


def sharers(model: nn.Module, module: nn.Module) -> list[str]:
    """The names of parameters outside of `module` that are parameters of it too (tied weights)."""
    own = {id(parameter) for parameter in module.parameters()}
    inside = {id(part) for part in module.modules()}
    return [
        f"{name}.{key}"
        for name, part in model.named_modules()
        if id(part) not in inside
        for key, parameter in part.named_parameters(recurse=False)
        if id(parameter) in own
    ]
