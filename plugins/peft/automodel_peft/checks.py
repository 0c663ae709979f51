"""Guards: an adapter that trained has changed, and nothing else has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.errors import GuardStop
from automodel_peft.layers import AdaptedLayer
from automodel_peft.trained import TrainedModule

# Of each tensor that trains: its sum and its sum of squares, in float64.
Fingerprints = Mapping[str, tuple[float, float]]


def fingerprints(model: nn.Module) -> Fingerprints:
    """What all that trains is like now, read from the device at once."""
    training = {name: whole(p).double() for name, p in model.named_parameters() if p.requires_grad}
    sums = [torch.stack([values.sum(), values.square().sum()]) for values in training.values()]
    return dict(zip(training, map(tuple, torch.stack(sums).tolist()), strict=True))


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter that tensor parallelism may have cut; every rank asks for it."""
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def check_trainable(model: nn.Module) -> None:
    """frozen_weights_train: only adapters and the modules named to train require a gradient.

    Raises:
        GuardStop: Something else does, such as the own weight of an adapted layer.
    """
    ours = {id(parameter) for module in model.modules() for parameter in added_to(module)}
    strange = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    if strange:
        raise GuardStop(
            "frozen_weights_train",
            f"Of what trains, this belongs to no adapter: {_listed(strange)}.",
            fix="name their modules in peft.modules_to_save if they should",
        )


def _listed(names: Sequence[str]) -> str:
    """The first of the names, and how many follow it."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def added_to(module: nn.Module) -> Iterable[nn.Parameter]:
    """What trains of this module."""
    if isinstance(module, TrainedModule):
        return module.parameters()
    if isinstance(module, AdaptedLayer):
        return [getattr(module, name) for name in module.stored.values()]
    return ()


def check_changed(model: nn.Module, start: Fingerprints) -> None:
    """adapter_unchanged: something was learned.

    Raises:
        GuardStop: Every tensor is as it was at the start, or every update is still zero.
    """
    layers = [module for module in model.modules() if isinstance(module, AdaptedLayer)]
    if fingerprints(model) == start:
        what = "None of the adapter's tensors has changed since the start."
    elif layers and all(layer.unused() for layer in layers):
        what = "The update of every adapted layer is still zero."
    else:
        return
    raise GuardStop(
        "adapter_unchanged",
        f"{what} The adapted modules take no part in the loss, or the learning rate is zero.",
        fix="look at lr, and at which modules peft.include_modules selects",
    )
