"""Refusing what the keys of a `peft:` section cannot mean, before a model is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import torch

from automodel_core.errors import UserError
from automodel_peft.choice import refused, without_triton
from automodel_peft.files import SavedAdapter

if TYPE_CHECKING:
    from automodel_peft.lora import PeftConfig

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# What an adapter to go on from has decided already.
DECIDED = (
    "match_all_linear",
    "include_modules",
    "exclude_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
)


def read_dtype(text: str) -> torch.dtype:
    """A dtype as the YAML writes it, with or without `torch.`.

    Raises:
        UserError: It is none that adapters train in.
    """
    name = text.removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(
            f"{text} is no dtype that adapters train in.",
            fix=f"write {' or '.join(DTYPES)}",
            argument="adapter_dtype",
        )
    return DTYPES[name]


def check_options(config: PeftConfig) -> None:
    """Refuse numbers that are out of range and demands that can't be met.

    Raises:
        UserError: With the argument at fault.
    """
    check_triton(config)
    for argument, ranks in (("dim", [config.dim]), ("rank_pattern", config.rank_pattern.values())):
        if any(rank < 1 for rank in ranks):
            raise UserError("A rank is at least 1.", fix="write dim: 8", argument=argument)
    if not 0.0 <= config.dropout < 1.0:
        raise UserError(
            f"dropout is a probability below 1, not {config.dropout}.",
            fix="write dropout: 0.05",
            argument="dropout",
        )
    if config.adapter_path is not None:
        for argument in DECIDED:
            if getattr(config, argument):
                raise UserError(
                    f"The adapter in adapter_path has decided {argument} already.",
                    fix="leave it out",
                    argument=argument,
                )


def check_triton(config: PeftConfig) -> None:
    """Refuse `use_triton: true` where the kernels can't be used; `auto` does without them.

    Raises:
        UserError: With the reason.
    """
    if config.use_triton is not True:
        return
    if config.dropout:
        reason = f"they compute without dropout, and dropout is {config.dropout}"
    elif config.use_dora:
        reason = f"there are none for {config.name}"
    else:
        reason = without_triton()
    if reason:
        raise refused(reason)


def check_variant(saved: SavedAdapter, config: PeftConfig) -> None:
    """Refuse an adapter whose tensors mean something else than this variant's.

    Raises:
        UserError: It is of another variant.
    """
    for key, variant in (("use_dora", "dora"), ("use_rslora", "rslora")):
        used = bool(saved.config.get(key))
        if used != getattr(config, key):
            has = f"it has {key}: {str(used).lower()}"
            raise UserError(
                f"{saved.folder} holds no {config.name} adapter: {has}.",
                fix=f"write _target_: {variant if used else 'lora'}",
                argument="adapter_path",
            )


def check_sizes(saved: SavedAdapter, config: PeftConfig) -> None:
    """Refuse another rank or alpha than an adapter to go on from has; the default says nothing.

    Raises:
        UserError: With the argument at fault.
    """
    defaults = {field.name: field.default for field in attrs.fields(type(config))}
    for argument, key in (("dim", "r"), ("alpha", "lora_alpha")):
        given, held = getattr(config, argument), saved.config[key]
        if given not in (held, defaults[argument]):
            raise UserError(
                f"The adapter in {saved.folder} has {argument}: {held}, not {given}.",
                fix="leave it out",
                argument=argument,
            )
