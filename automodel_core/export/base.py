"""The base model of an adapter: found, and brought into a form that can be read by the tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from automodel_core.errors import UserError
from automodel_core.export.companions import copy_companions
from automodel_core.export.stored import has_safetensors, open_stored, weight_files
from automodel_core.protocols import ModelSource
from automodel_core.train.rng import seed_everything

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")


@attrs.frozen
class Base:
    """A base model.

    Attributes:
        folder: Its safetensors files, and what is beside them.
        config: Its configuration, as the run had it.
        source: What the run loaded it with, for the same weights in the same way.
    """

    folder: Path
    config: PretrainedConfig
    source: ModelSource | None = None

    @property
    def quantized(self) -> str | None:
        """How its weights are quantized, as transformers calls it."""
        settings = getattr(self.config, "quantization_config", None)
        return str(settings.get("quant_method", "some method")) if settings else None

    def without_weights(self) -> PreTrainedModel:
        """The model on PyTorch's meta device."""
        try:
            with torch.device("meta"):
                return auto_class(self.config).from_config(self.config)
        except (ValueError, ImportError) as error:
            raise UserError(f"The base model can't be used: {first_line(error)}") from None

    def load(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model with its weights."""
        if self.source is not None:
            return self.source.load_model(dtype, device)
        options = {"config": self.config, "dtype": dtype}
        return auto_class(self.config).from_pretrained(self.folder, **options).to(device)


def auto_class(config: PretrainedConfig) -> Any:
    """transformers' class that builds what a configuration describes."""
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def named_base(name: str, revision: str | None) -> Base:
    """A model in a folder, or on the Hub; only what is needed of it is fetched. Its weights may be
    quantized.

    Raises:
        UserError: There is no such model, or not in safetensors.
    """
    folder = folder_of(name, revision)
    if not has_safetensors(folder):
        raise UserError(
            f"{name} has no safetensors, from which weights are merged one at a time.",
            fix="name the same model in safetensors with --base",
        )
    return Base(folder, read_config(folder))


def stored_base(source: ModelSource) -> Base | None:
    """The folder that the run read its weights from, if they are exactly its safetensors.

    Raises:
        UserError: It was a Hub model that can't be had any more.
    """
    on_disk = Path(source.name).expanduser().is_dir()
    if source.weight_bytes is None or not (on_disk or source.revision):
        return None
    folder = folder_of(source.name, source.revision)
    if not has_safetensors(folder) or open_stored(folder).bytes_on_disk() != source.weight_bytes:
        return None
    return Base(folder, source.config, source)


def folder_of(name: str, revision: str | None) -> Path:
    """A folder as it is, or a Hub model's snapshot."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else fetched(name, revision)


def fetched(name: str, revision: str | None) -> Path:
    """The snapshot of a Hub model with its configuration, tokenizer and safetensors.

    Raises:
        UserError: It isn't there, or can't be reached and isn't cached.
    """
    try:
        small = list(SMALL_FILES)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=small))
        needed = weight_files(folder)
        return Path(snapshot_download(name, revision=revision, allow_patterns=needed))
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"There is no folder {name}, and it can't be had from the Hugging Face Hub: "
            f"{first_line(error)}",
            fix="name the folder of the base model with --base",
        ) from None


def read_config(folder: Path) -> PretrainedConfig:
    """Raises UserError if transformers can't read it without running the model's own code."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no model: {first_line(error)}") from None


@contextmanager
def rewritten_base(
    source: ModelSource, dtype: torch.dtype, seed: int, near: Path
) -> Iterator[Base]:
    """A model that isn't stored in safetensors (GGUF, pickled or random weights), loaded whole as
    the run loaded it and written to a folder that lasts as long as the context.

    Args:
        source: The run's model.
        dtype: What the run held it in; other random weights are drawn in another.
        seed: The run's, which random weights are drawn from.
        near: An existing folder on a disk with room for it.
    """
    with TemporaryDirectory(dir=near, prefix=".base-") as folder:
        seed_everything(seed)
        model = source.load_model(dtype, torch.device("cpu"))
        model.save_pretrained(folder)
        yield Base(Path(folder), model.config)


@contextmanager
def dequantized_base(base: Base, near: Path) -> Iterator[Base]:
    """What quantized weights stand for, loaded whole and written in float32 to a folder that lasts
    as long as the context.

    Args:
        base: The quantized model.
        near: An existing folder on a disk with room for it.

    Raises:
        UserError: transformers can't undo this kind of quantization here.
    """
    config = copy.deepcopy(base.config)
    config.quantization_config["dequantize"] = True
    try:
        model, report = auto_class(config).from_pretrained(
            base.folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise not_dequantized(base, first_line(error)) from None
    if left := [name for name, each in model.named_parameters() if each.dtype != torch.float32]:
        raise not_dequantized(base, f"{left[0]} is {model.get_parameter(left[0]).dtype} still")
    if lost := sorted(report["missing_keys"]):
        raise not_dequantized(base, f"it has no {lost[0]}")
    with TemporaryDirectory(dir=near, prefix=".base-") as folder:
        # Its original format is the quantized one.
        model.save_pretrained(folder, save_original_format=False)
        copy_companions(Path(folder), base.folder)
        config = model.config
        del model
        yield Base(Path(folder), config)


def not_dequantized(base: Base, reason: str) -> UserError:
    """The refusal of a base whose quantization can't be undone."""
    return UserError(
        f"The weights of {base.folder} ({base.quantized}) can't be dequantized here: {reason}",
        fix="name the model that it was quantized from with --base",
    )


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
