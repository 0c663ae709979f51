"""Liger's Triton kernels (https://arxiv.org/abs/2410.10989) for one model's norms and feed-forward
layers.

Losses stay the YAML's. Rotary embeddings stay the model's: Liger replaces them in the module of the
model's class, and so in every other model of the process.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from automodel_core.errors import UserError

# What Liger would do beside norms and feed-forward layers.
LEFT_OUT = ("rope", "cross_entropy", "fused_linear_cross_entropy")


def check_liger(asked: Literal["auto"] | bool, config: PretrainedConfig) -> bool:
    """Whether to use Liger's kernels. "auto" doesn't: layers that are compiled measured faster.

    Raises:
        UserError: The YAML asks for them, and they aren't installed, or not for this machine or
            this kind of model.
    """
    if asked is not True:
        return False
    if find_spec("liger_kernel") is None:
        raise _unusable(
            "use_liger_kernel needs the package liger-kernel, which isn't installed.",
            "pip install liger-kernel, or write use_liger_kernel: auto",
        )
    if not torch.cuda.is_available():
        raise _unusable("Liger's kernels need a GPU, and PyTorch sees none.")
    if config.model_type not in _ways():
        raise _unusable(f"Liger has no kernels for {config.model_type} models.")
    return True


def use_liger(model: PreTrainedModel) -> None:
    """Give this model's norms and feed-forward layers Liger's forward, in place; no parameter is
    renamed, and no other model is touched."""
    apply = _ways()[model.config.model_type]
    known = inspect.signature(apply).parameters
    options = {name: False for name in LEFT_OUT if name in known}
    with _classes_kept():
        apply(model=model, **options)


@contextmanager
def _classes_kept() -> Iterator[None]:
    """Liger also puts its classes into transformers' modules, where later models would find them;
    afterwards they are as they were."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and ".modeling_" in name
    ]
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            vars(module).update(values)


def _ways() -> dict:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return MODEL_TYPE_TO_APPLY_LIGER_FN


def _unusable(message: str, fix: str = "write use_liger_kernel: auto") -> UserError:
    return UserError(message, fix=fix, argument="use_liger_kernel")
