"""What kinds of model can be trained, and transformers' class that builds each."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import attrs
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)


@attrs.frozen
class Family:
    """A kind of model.

    Attributes:
        noun: What to call one.
        auto_class: transformers' class that reads or draws one.
        configurations: The configurations that it has a model for.
        example: A model type, to suggest.
        processes: Whether it comes with a processor.
    """

    noun: str
    auto_class: Any
    configurations: Container[type[PretrainedConfig]]
    example: str
    processes: bool

    def model_class(self, config: PretrainedConfig) -> type[PreTrainedModel] | None:
        """transformers' model of a configuration; None for one with Python of its own."""
        known = type(config) in self.configurations
        return self.auto_class._model_mapping[type(config)] if known else None


CAUSAL_LM = Family(
    "causal language model", AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "llama", False
)
IMAGE_TEXT = Family(
    "image-text-to-text model",
    AutoModelForImageTextToText,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    "gemma3",
    True,
)
