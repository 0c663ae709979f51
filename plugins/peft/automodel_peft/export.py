"""From an adapted model to what PEFT expects in an adapter's folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from automodel_peft.files import PREFIX
from automodel_peft.layers import AdaptedLayer
from automodel_peft.trained import TrainedModule

if TYPE_CHECKING:
    from automodel_peft.lora import PeftConfig


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers with an adapter, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, AdaptedLayer)}


def trained_modules(model: nn.Module) -> dict[str, TrainedModule]:
    """The modules that train as a whole, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, TrainedModule)}


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of an adapter's file, by its name there."""
    state = {
        f"{PREFIX}{name}.{stored}": tensor
        for name, layer in adapted_layers(model).items()
        for stored, tensor in layer.stored_tensors().items()
    }
    for name, module in trained_modules(model).items():
        state |= {f"{PREFIX}{name}.{key}": each for key, each in module.state_dict().items()}
    return state


def adapter_config(config: PeftConfig, model: nn.Module) -> dict[str, Any]:
    """An adapter_config.json without the base model's name.

    Keys that are left out have PEFT's defaults. Every module is named in full.
    """
    layers = adapted_layers(model)
    ranks = {name: layer.stored_rank for name, layer in layers.items()}
    alphas = {name: _plain(layer.stored_alpha) for name, layer in layers.items()}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _exceptions(ranks, rank),
        "alpha_pattern": _exceptions(alphas, alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "target_modules": _targets(list(layers), model),
        "modules_to_save": list(trained_modules(model)) or None,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
        "init_lora_weights": True,
    }


def _targets(names: list[str], model: nn.Module) -> list[str] | str:
    """The names as PEFT takes them, which also adapts whatever ends in `.name`.

    Where a module that has no adapter ends like one that has, a regular expression says it exactly.
    """
    ends = tuple(f".{name}" for name in names)
    adapted = set(names)
    if any(name.endswith(ends) and name not in adapted for name, _ in model.named_modules()):
        return "|".join(map(re.escape, names))
    return names


def _exceptions(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """The values that aren't the usual one, by a regular expression for the whole name."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _plain(number: float) -> float:
    """Whole numbers without a decimal point, as PEFT writes them."""
    return int(number) if number == int(number) else number
