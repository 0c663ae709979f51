"""Processors of images and videos where torchvision, which videos need, isn't installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import PushToHubMixin, is_torchvision_available

from automodel_core.errors import UserError

# Where a model's files name the class of its processor, and hold the settings of its parts.
PROCESSOR, IMAGES, VIDEOS, TOKENIZER = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)


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


def reads_videos(folder: Path) -> bool:
    """Whether a model's processor has a part that can't be made here."""
    if is_torchvision_available():
        return False
    kind = processor_class(folder)
    return kind is not None and "video_processor" in kind.get_attributes()


def read_without_videos(folder: Path) -> ProcessorMixin:
    """The processor of a model's folder, whose part for videos is only its settings.

    Raises:
        OSError, ValueError, TypeError, KeyError: As `AutoProcessor.from_pretrained`.
    """
    kind = processor_class(folder)

    class WithoutVideos(kind):
        """Takes the settings where the class wants a part that reads videos."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if not isinstance(argument, VideoSettings):
                return super().check_argument_for_proper_class(argument_name, argument)
            return VideoSettings

    made = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(folder),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder),
        "video_processor": lambda: VideoSettings(video_settings(folder)),
    }
    parts = [made[attribute]() for attribute in kind.get_attributes()]
    settings, _ = kind.get_processor_dict(folder)
    processor = WithoutVideos.from_args_and_dict(parts, settings)
    processor.__class__ = kind  # its name is written into what is saved
    return processor


def processor_class(folder: Path) -> type[ProcessorMixin] | None:
    """The class that a model's files name, else that of its configuration's type."""
    names = (
        each.get("processor_class")
        for each in contents(folder, PROCESSOR, VIDEOS, IMAGES, TOKENIZER)
    )
    name = next(filter(None, names), None)
    if name is not None:
        return getattr(transformers, name, None)
    return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(folder)), None)


def video_settings(folder: Path) -> dict[str, Any]:
    """Where transformers looks for them: with the whole processor's, apart, or the images'."""
    for whole in contents(folder, PROCESSOR):
        if "video_processor" in whole:
            return whole["video_processor"]
    return next(contents(folder, VIDEOS, IMAGES), {})


def contents(folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """The objects in those of the files that are there."""
    for name in names:
        if (folder / name).is_file():
            yield json.loads((folder / name).read_text(encoding="utf-8"))
