"""From a model that was found to one that answers; first what is small, then the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from automodel_core.errors import UserError
from automodel_core.processors import read_processor
from automodel_core.protocols import Adapter, ModelSource
from automodel_core.targets import at
from automodel_core.train.freezing import freeze
from automodel_core.train.prepare import load_section, read_tokenizer
from automodel_core.train.rng import seed_everything

if TYPE_CHECKING:
    from automodel_core.cli.finding import FoundModel

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@attrs.frozen(kw_only=True)
class OpenedModel:
    """A model before its weights are read, with all that goes with it."""

    found: FoundModel
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None = None

    def build_adapter(self) -> Adapter | None:
        """The adapter, if it has one; not yet applied.

        Raises:
            ConfigError: At the line of the configuration that is at fault.
            UserError: An argument of it can't be used.
        """
        found = self.found
        if found.peft is None:
            return None
        supplied: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "processor": self.processor,
            "model_config": self.source.config,
            "seed": found.seed,
        }
        with found.placed():
            return found.targets.build(found.peft, supplied)

    def load(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model with its weights, and its adapter, in evaluation mode.

        Raises:
            ConfigError: At the line of the run's configuration that is at fault.
            UserError: The weights or the adapter can't be read, or don't fit.
        """
        found, adapter = self.found, self.build_adapter()
        seed_everything(found.seed)
        with found.placed():
            with at(found.model.path):
                model = self.source.load_model(dtype, device, found.weights)
                if found.weights is None:
                    self.source.check_vocabulary(model, self.tokenizer)
            if adapter is not None:
                freeze(model, found.freezing)  # adapters leave frozen modules alone
                with at(found.peft.path):
                    adapter.apply(model)
                    if found.adapter is not None:
                        adapter.load(model, found.adapter)
        return model.eval()


def open_model(found: FoundModel, like: OpenedModel | None = None) -> OpenedModel:
    """Build what `found` names but for its weights: the model's source, tokenizer and processor.

    Args:
        found: From `find_model`.
        like: Take the tokenizer and the processor of this one instead.

    Raises:
        ConfigError: At the line of the run's configuration that is at fault.
        UserError: It isn't there, or can't be used.
    """
    with found.placed():
        source: ModelSource = found.targets.build(found.model, {"seed": found.seed})
        if like is not None:
            return OpenedModel(
                found=found, source=source, tokenizer=like.tokenizer, processor=like.processor
            )
        processor = load_processor(found, source)
        tokenizer = load_tokenizer(found, source, processor)
    return OpenedModel(found=found, source=source, tokenizer=tokenizer, processor=processor)


def load_processor(found: FoundModel, source: ModelSource) -> ProcessorMixin | None:
    """The processor that was saved beside the model or adapter, else the model's own."""
    if found.processor is not None:
        return load_section(read_processor, found.processor, "processor")
    with at(found.model.path):
        return source.load_processor()


def load_tokenizer(
    found: FoundModel, source: ModelSource, processor: ProcessorMixin | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved beside the model or adapter, else the processor's, else the
    model's own."""
    if found.tokenizer is not None:
        return load_section(read_tokenizer, found.tokenizer, "tokenizer")
    if processor is not None:
        return processor.tokenizer
    with at(found.model.path):
        return source.load_tokenizer()


def choose_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by its name; `auto` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: float16 on the CPU, where it is slow and overflows.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("float16 needs a GPU.", fix="write --dtype bfloat16 or float32")
    return DTYPES[name]


def context_length(config: PretrainedConfig) -> int | None:
    """How many tokens, prompt and answer together, the model has positions for; None if it says
    nothing."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
