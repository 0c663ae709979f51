"""From a model that was found to one that answers; first what is small, then the weights."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.cli.finding import FoundModel
from automodel_core.errors import UserError
from automodel_core.protocols import Adapter, ModelSource
from automodel_core.targets import at
from automodel_core.train.prepare import load_auto
from automodel_core.train.rng import seed_everything

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
    adapter: Adapter | None

    def load(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model with its weights, and its adapter, in evaluation mode.

        Raises:
            ConfigError: At the line of the run's configuration that is at fault.
            UserError: The weights or the adapter can't be read, or don't fit.
        """
        found = self.found
        seed_everything(found.seed)
        with found.placed():
            with at(found.model.path):
                model = self.source.load_model(dtype, device, found.weights)
                if found.weights is None:
                    self.source.check_vocabulary(model, self.tokenizer)
            if self.adapter is not None:
                with at(found.peft.path):
                    self.adapter.apply(model)
                    if found.adapter is not None:
                        self.adapter.load(model, found.adapter)
        return model.eval()


def open_model(found: FoundModel, tokenizer: PreTrainedTokenizerBase | None = None) -> OpenedModel:
    """Build what `found` names: the model's source, its tokenizer and its adapter.

    Args:
        found: From `find_model`.
        tokenizer: Use this one instead.

    Raises:
        ConfigError: At the line of the run's configuration that is at fault.
        UserError: It isn't there, or can't be used.
    """
    with found.placed():
        source: ModelSource = found.targets.build(found.model, {"seed": found.seed})
        if tokenizer is None:
            tokenizer = load_tokenizer(found, source)
        supplied: dict[str, Any] = {
            "tokenizer": tokenizer,
            "processor": source.load_processor(),
            "model_config": source.config,
            "seed": found.seed,
        }
        adapter = found.targets.build(found.peft, supplied) if found.peft else None
    return OpenedModel(found=found, source=source, tokenizer=tokenizer, adapter=adapter)


def load_tokenizer(found: FoundModel, source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved beside the model or adapter, else the model's own."""
    if found.tokenizer is not None:
        return load_auto(AutoTokenizer, found.tokenizer, "tokenizer")
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
