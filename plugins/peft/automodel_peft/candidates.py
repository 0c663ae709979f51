"""The modules of a model that can be adapted, and which of them make up its language model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Parts of a name that belong to something else than the language model.
TOWERS = ("vision", "visual", "image", "audio", "speech", "projector", "connector", "aligner")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its dotted name, GPT-2's Conv1D included.

    The one inside `torch.nn.MultiheadAttention` is left out: its owner takes its weight and never
    calls it.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
    }


def embedding_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every embedding by its dotted name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Embedding)}


def language_model_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the language model, without its output embeddings."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = {id(module) for module in (decoder or model).modules()}
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in linear_layers(model).items()
        if id(module) in inside and module is not head and not _of_another_tower(name)
    }


def _of_another_tower(name: str) -> bool:
    return name == "lm_head" or any(word in part for part in name.split(".") for word in TOWERS)


def in_and_out(module: nn.Module) -> tuple[int, int]:
    """The features that a linear layer or embedding takes, and those that it gives."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features


def grouped(modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """One line for all modules whose names differ only in numbers and that have one shape."""
    described = sorted((_place(name), *in_and_out(each)) for name, each in modules.items())
    return tuple(
        f"{place}  {_times(entries)}{features_in} -> {features_out}"
        for (place, features_in, features_out), entries in groupby(described)
    )


def _place(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _times(entries: Iterable[object]) -> str:
    count = sum(1 for _ in entries)
    return f"{count} x " if count > 1 else ""
