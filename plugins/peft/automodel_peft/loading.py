"""From an adapter's file into a model that has been adapted in the same way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from automodel_core.errors import UserError
from automodel_peft.export import adapted_layers, adapter_state, trained_modules
from automodel_peft.files import PREFIX, SavedAdapter

# What PEFT calls the frozen weight of an embedding, which it writes beside an embedding's adapter.
FROZEN = ".base_layer.weight"


def load_into(model: nn.Module, saved: SavedAdapter) -> None:
    """Fill the adapted layers and the modules that train with a file's tensors.

    Raises:
        UserError: The file holds another adapter: other modules, ranks or kinds of tensors.
    """
    check_same_tensors(adapter_state(model), saved)
    check_frozen(model, saved)
    for name, layer in adapted_layers(model).items():
        layer.load_stored(saved.adapted[name])
    for name, module in trained_modules(model).items():
        module.load_state_dict(
            {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in saved.others.items()
                if key.startswith(f"{name}.")
            }
        )


def check_same_tensors(expected: Mapping[str, torch.Tensor], saved: SavedAdapter) -> None:
    """Compare names and shapes.

    Raises:
        UserError: They differ; the first difference is named.
    """
    held = {
        f"{PREFIX}{module}.{name}": tensor.shape
        for module, tensors in saved.adapted.items()
        for name, tensor in tensors.items()
    } | {f"{PREFIX}{n}": t.shape for n, t in saved.others.items() if not n.endswith(FROZEN)}
    wanted = {name: tensor.shape for name, tensor in expected.items()}
    different = sorted(
        name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name)
    )
    if different:
        name = different[0]
        raise UserError(
            f"{saved.folder} holds another adapter than this run's: {name.removeprefix(PREFIX)} "
            f"is {_shape(held.get(name))} there and {_shape(wanted.get(name))} here.",
            argument="adapter_path",
        )


def brings_embedding(saved: SavedAdapter) -> bool:
    """Whether a file has an embedding that must be the model's own."""
    return any(key.endswith(FROZEN) for key in saved.others)


def check_frozen(model: nn.Module, saved: SavedAdapter) -> None:
    """An embedding that came with the file must be the model's own.

    Raises:
        UserError: It was changed, for instance to add tokens, or can't be compared with a model
            without weights.
    """
    for key, tensor in saved.others.items():
        if not key.endswith(FROZEN):
            continue
        own = model.get_submodule(key.removesuffix(FROZEN)).weight.detach()
        if own.is_meta:
            raise UserError(
                f"{saved.folder} brings an embedding to compare with the model's, which isn't read "
                "yet.",
                fix="apply the adapter after the weights are read",
                argument="adapter_path",
            )
        own = own.cpu()
        if own.shape != tensor.shape or not torch.allclose(own.float(), tensor.float(), rtol=1e-2):
            raise UserError(
                f"{saved.folder} brings an embedding of its own for {key.removesuffix(FROZEN)}.",
                fix="write the model whose embeddings these are",
                argument="adapter_path",
            )


def _shape(shape: torch.Size | None) -> str:
    return "x".join(map(str, shape)) if shape is not None else "missing"
