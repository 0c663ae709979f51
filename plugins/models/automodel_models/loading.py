"""From a folder of files to a tokenizer, and to a model with all its weights."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import GENERATION_CONFIG_NAME

from automodel_core import processors
from automodel_core.errors import UserError
from automodel_core.train.model_files import check_fit
from automodel_models.families import Family
from automodel_models.generation_config import make_savable
from automodel_models.quiet import quiet_transformers
from automodel_models.remote_code import HOW_TO_TRUST

# How a folder that holds a tokenizer shows it. transformers makes an empty one of any other.
TOKENIZER_FILES = (
    "tokenizer.*", "*.model", "*.tiktoken", "vocab*", "merges.txt", "tekken.json", "spiece*",
)  # fmt: skip


def read_tokenizer(
    folder: Path, name: str, gguf_file: str | None, trusted: bool, argument: str
) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, as it is: no pad token is made up.

    Raises:
        UserError: There is none, or only the model's own Python could read it.
    """
    elsewhere = "name another in a tokenizer: section, with pretrained_model_name_or_path"
    if not gguf_file and not any(next(folder.glob(each), None) for each in TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer.", fix=elsewhere, argument=argument)
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted, **gguf)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise UserError(
                f"The tokenizer of {name} is made by Python files of its own, "
                "which are not run unless you say so.",
                fix=HOW_TO_TRUST,
                argument=argument,
            ) from None
        raise UserError(
            f"The tokenizer of {name} can't be read: {said[:300]}", fix=elsewhere, argument=argument
        ) from None


def read_processor(folder: Path, name: str, trusted: bool, argument: str) -> ProcessorMixin:
    """The processor in a model's folder.

    Raises:
        UserError: There is none, or it lacks a package.
    """
    try:
        with quiet_transformers():
            return processors.read_processor(folder, trusted=trusted)
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"The processor of {name} can't be read: {said[:300]}",
            fix="name another in a processor: section, with pretrained_model_name_or_path",
            argument=argument,
        ) from None


def read_model(
    folder: Path,
    *,
    name: str,
    config: PretrainedConfig | None,
    gguf_file: str | None,
    dtype: torch.dtype,
    attention: str | None,
    trusted: bool,
    family: Family,
) -> PreTrainedModel:
    """All weights, as `dtype`, on the CPU; those of a GGUF are dequantized.

    Pickled weights are read with `weights_only=True`, which builds tensors and nothing else.

    Args:
        folder: Where the weights are.
        name: What to call the model in errors and in what is saved of it.
        config: None takes the folder's own.

    Raises:
        UserError: The weights can't be read, or don't fit the configuration.
    """
    options: dict[str, Any] = _gguf_options(gguf_file) if gguf_file else {}
    if config is not None:
        options["config"] = config
    try:
        with quiet_transformers():
            model, report = family.auto_class.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=trusted,
                weights_only=True,
                ignore_mismatched_sizes=True,  # told from the report, with their names
                output_loading_info=True,
                **options,
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"The weights of {name} hold Python objects, which are never unpickled.",
            fix="use the same model in safetensors format",
        ) from None
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"The weights of {name} can't be read: {said[:300]}") from error
    unfit = [key for key, *_ in report["mismatched_keys"]]
    check_fit(name, report["missing_keys"], unfit, report["unexpected_keys"])
    _forget_quantizer(model)
    with quiet_transformers():
        make_savable(model.generation_config, name)
    model.config.name_or_path = model.name_or_path = name
    return model


def finish(model: PreTrainedModel, folder: Path, name: str, dtype: torch.dtype) -> None:
    """What `from_pretrained` does besides reading weights.

    Args:
        model: Made from its configuration alone.
        folder: Holds generation settings, if the model came with any.
        name: What to call the model in what is saved of it.
        dtype: What its weights are held in.
    """
    with quiet_transformers():
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        make_savable(model.generation_config, name)
    model.config.dtype = dtype
    model.config.name_or_path = model.name_or_path = name


def _gguf_options(gguf_file: str) -> dict[str, Any]:
    """What transformers needs to unpack every weight of a GGUF."""
    if find_spec("accelerate") is None:
        raise UserError(
            "transformers reads GGUF files with the package accelerate, which isn't installed.",
            fix="pip install accelerate",
        )
    options: dict[str, Any] = {"gguf_file": gguf_file}
    # Newer versions keep the weights packed, and untrainable, unless told otherwise.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def _forget_quantizer(model: PreTrainedModel) -> None:
    """Take transformers' marks off a dequantized model: they forbid training and saving it."""
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
