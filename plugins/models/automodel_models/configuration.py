"""A model's configuration: read without its weights, and checked for what can be trained."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from automodel_core.errors import UserError
from automodel_models.families import Family
from automodel_models.files import ModelFiles
from automodel_models.quiet import quiet_transformers
from automodel_models.remote_code import check_needs_no_code

# What transformers raises for a configuration that makes no sense to it.
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)

# Keys of a configuration that describe its weights or its files: other parameters decide these.
NOT_CHANGEABLE = {
    "architectures", "auto_map", "dtype", "model_type", "quantization_config", "torch_dtype",
    "transformers_version",
}  # fmt: skip


def read_configuration(
    files: ModelFiles, changes: dict[str, Any], trusted: bool, family: Family
) -> PretrainedConfig:
    """The configuration of a model with some of its keys changed.

    Args:
        files: Where it is.
        changes: Keys of the configuration to set otherwise.
        trusted: Whether the model's own Python may run.
        family: What kind of model it must be of.

    Raises:
        UserError: It can't be read, isn't of that kind, or lacks a changed key.
    """
    if files.gguf_file is None:
        check_raw_configuration(files, trusted, family)
    config = _load(files, {}, trusted)
    check_changes(config, changes)
    if changes:
        config = _load(files, changes, trusted)
    if type(config) not in family.configurations and not trusted:
        raise UserError(
            f"{files.name} is a {config.model_type} model, and transformers has no {family.noun} "
            "of that type.",
            fix=f"write {article(family.noun)}",
            argument=files.argument,
        )
    return config


def check_raw_configuration(files: ModelFiles, trusted: bool, family: Family) -> None:
    """Look at config.json as it stands, before transformers does anything with it."""
    path = files.folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    except (ValueError, AttributeError):
        raise UserError(f"{path} isn't a JSON object.", argument=files.argument) from None
    if not trusted:
        check_needs_no_code(files.name, raw, files.argument)
        if model_type not in CONFIG_MAPPING:
            raise UserError(
                f"{files.name} is a {model_type} model, "
                f"which transformers {transformers.__version__} doesn't know.",
                fix="upgrade transformers, or write another model",
                argument=files.argument,
            )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "some method")
        raise UserError(
            f"The weights of {files.name} are quantized ({method}), so they can't be trained.",
            fix="write the model that it was quantized from",
            argument=files.argument,
        )
    if architectures and all(name.endswith("ForMaskedLM") for name in architectures):
        raise UserError(
            f"{files.name} ({architectures[0]}) fills in masked words; "
            "it doesn't generate text token by token.",
            fix=f"write {article(family.noun)}",
            argument=files.argument,
        )


def check_changes(config: PretrainedConfig, changes: dict[str, Any]) -> None:
    """Refuse changes to keys that the configuration doesn't have.

    Raises:
        UserError: A key is unknown, or another parameter decides it.
    """
    for key in changes:
        if key in NOT_CHANGEABLE:
            raise UserError(f"hf_kwargs can't set {key}.", fix="leave it out", argument="hf_kwargs")
        _check_key(config, key, "hf_kwargs")


def _check_key(config: PretrainedConfig, key: str, argument: str) -> None:
    """transformers takes any key and ignores what it doesn't know: a typo would go unnoticed."""
    keys = [each for each in config.to_dict() if not each.startswith("_")]
    if key in keys:
        return
    close = get_close_matches(key, keys, n=1)
    raise UserError(
        f"The configuration of a {config.model_type} model has no key {key}.",
        fix=f"did you mean {close[0]}?" if close else "leave it out",
        argument=argument,
    )


def _load(files: ModelFiles, changes: dict[str, Any], trusted: bool) -> PretrainedConfig:
    gguf = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                files.folder, trust_remote_code=trusted, **gguf, **changes
            )
    except UNREADABLE as error:
        raise unreadable(files.name, error, files.argument) from None


def make_configuration(
    description: dict[str, Any] | PretrainedConfig, family: Family
) -> PretrainedConfig:
    """A configuration from what config.json would have, or one that is made already.

    Raises:
        UserError: No such model type, not one of that family, or an unknown key.
    """
    if isinstance(description, PretrainedConfig):
        _check_family(type(description), description.model_type, family)
        return description
    if not isinstance(description, dict):
        raise UserError(
            f"{description!r} is no configuration.",
            fix="write a folder, a model on the Hub, or a mapping with model_type",
            argument="config",
        )
    rest = dict(description)
    model_type = rest.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        close = get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        raise UserError(
            f"A configuration needs a model_type that transformers knows, not {model_type}.",
            fix=f"did you mean {close[0]}?"
            if close
            else f"write model_type: {family.example}, for instance",
            argument="config",
        )
    _check_family(CONFIG_MAPPING[model_type], model_type, family)
    for key in rest:
        _check_key(CONFIG_MAPPING[model_type](), key, "config")
    try:
        with quiet_transformers():
            return AutoConfig.for_model(model_type, **rest)
    except UNREADABLE as error:
        raise unreadable(f"The {model_type} configuration", error, "config") from None


def _check_family(config_class: type[PretrainedConfig], model_type: str, family: Family) -> None:
    if config_class not in family.configurations:
        raise UserError(
            f"transformers has no {family.noun} of type {model_type}.",
            fix=f"write one that has, such as model_type: {family.example}",
            argument="config",
        )


def article(noun: str) -> str:
    """The noun behind its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def empty_model(
    config: PretrainedConfig, attention: str | None, trusted: bool, family: Family
) -> PreTrainedModel:
    """The model of a configuration without weights, on the meta device; tied ones are tied.

    Raises:
        UserError: transformers can't build it, for instance with that attention.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            return family.auto_class.from_config(
                config, attn_implementation=attention, trust_remote_code=trusted
            )
    except (ImportError, *UNREADABLE) as error:
        raise unreadable(
            f"A {config.model_type} model with this configuration",
            error,
            "attn_implementation" if attention else None,
        ) from None


def count_parameters(
    config: PretrainedConfig, attention: str | None, trusted: bool, family: Family
) -> int:
    """How many parameters the model of a configuration has, tied ones counted once.

    Raises:
        UserError: As `empty_model`.
    """
    model = empty_model(config, attention, trusted, family)
    return sum(each.numel() for each in model.parameters())


def unreadable(what: str, error: Exception, argument: str | None) -> UserError:
    """The first lines of what transformers has to say."""
    said = " ".join(str(error).split())
    return UserError(
        f"{what} can't be used: {said[:300] or type(error).__name__}", argument=argument
    )
