"""Processors: tokenizer, image processor and chat template in one.

The image processors work on Pillow and NumPy where torchvision isn't installed. Videos need it; a
processor of both is made without its part for videos then. Pixtral's does without it as well,
although transformers asks for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import PushToHubMixin, cached_file, is_torchvision_available

from automodel_core.errors import UserError

# Where a model's files name the class of its processor, and hold the settings of its parts.
PROCESSOR, IMAGES, VIDEOS, TOKENIZER = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
PIXTRAL = "PixtralProcessor"


def read_processor(
    name: str | Path, revision: str | None = None, *, trusted: bool = False
) -> ProcessorMixin:
    """The processor in a folder or on the Hub.

    Args:
        name: Folder or repository.
        revision: Branch, tag or commit on the Hub.
        trusted: Whether its repository's Python may run.

    Raises:
        ValueError: There is none.
        OSError, TypeError, KeyError, ImportError, AttributeError: As transformers fails.
    """
    where = {"revision": revision or "main"}
    if not trusted and not is_torchvision_available():
        kind = processor_class(name, where)
        if kind is not None and "video_processor" in kind.get_attributes():
            return without_videos(kind, name, where)
        if kind is not None and kind.__name__ == PIXTRAL:
            return kind.from_pretrained(name, **where)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=trusted, **where)
    if not isinstance(processor, ProcessorMixin):  # transformers falls back to a bare tokenizer
        raise ValueError(f"{name} has no processor")
    return processor


def with_tokenizer(processor: ProcessorMixin, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """The processor as if it had been saved with this tokenizer: it is read again, since it looks
    up tokens when it is made."""
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return read_processor(folder)


class VideoSettings(PushToHubMixin):
    """Stands where a processor keeps its part for videos, and is saved with it unchanged.

    Args:
        settings: What that part is made from.
    """

    _auto_class = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        raise UserError("Videos are read by torchvision.", fix="pip install torchvision")


def without_videos(
    kind: type[ProcessorMixin], name: str | Path, where: dict[str, str]
) -> ProcessorMixin:
    """A processor of this class, whose part for videos is only its settings."""

    class WithoutVideos(kind):
        """Takes the settings where the class wants a part that reads videos."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if not isinstance(argument, VideoSettings):
                return super().check_argument_for_proper_class(argument_name, argument)
            return VideoSettings

    made = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(name, **where),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(name, **where),
        "video_processor": lambda: VideoSettings(video_settings(name, where)),
    }
    parts = [made[attribute]() for attribute in kind.get_attributes()]
    settings, _ = kind.get_processor_dict(name, **where)
    processor = WithoutVideos.from_args_and_dict(parts, settings)
    processor.__class__ = kind  # its name is written into what is saved
    return processor


def processor_class(name: str | Path, where: dict[str, str]) -> type[ProcessorMixin] | None:
    """The class that a model's files name, else that of its configuration's type."""
    named = (
        each.get("processor_class")
        for each in contents(name, where, PROCESSOR, VIDEOS, IMAGES, TOKENIZER)
    )
    found = next(filter(None, named), None)
    if found is None:
        found = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(name, **where).model_type)
    if found == PIXTRAL:
        return pixtral_processor()
    return getattr(transformers, found, None) if found else None


def pixtral_processor() -> type[ProcessorMixin]:
    """The class of Pixtral's processor, also where torchvision isn't installed.

    Its module imports a function about sizes from the module of the image processor that needs
    torchvision. The one that works on Pillow has the same function, and takes its place meanwhile.
    """
    if is_torchvision_available():
        return transformers.PixtralProcessor
    package = "transformers.models.pixtral"
    missing = f"{package}.image_processing_pixtral"
    sys.modules[missing] = import_module(f"{package}.image_processing_pil_pixtral")
    try:
        return import_module(f"{package}.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[missing]


def video_settings(name: str | Path, where: dict[str, str]) -> dict[str, Any]:
    """Where transformers looks for them: with the whole processor's, apart, or the images'."""
    for whole in contents(name, where, PROCESSOR):
        if "video_processor" in whole:
            return whole["video_processor"]
    return next(contents(name, where, VIDEOS, IMAGES), {})


def contents(name: str | Path, where: dict[str, str], *files: str) -> Iterator[dict[str, Any]]:
    """The objects in those of the files that are there."""
    for file in files:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
        if path is not None:
            yield json.loads(Path(path).read_text(encoding="utf-8"))
