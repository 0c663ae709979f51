"""The adapter object that belongs to a saved adapter, and the prompts to try it on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from automodel_core.config.schema import RunConfig
from automodel_core.errors import UserError
from automodel_core.peft_folder import peft_target
from automodel_core.protocols import Adapter
from automodel_core.targets import Targets
from automodel_core.train.generation import questions_from
from automodel_core.train.prepare import validation_targets


def adapter_of(
    config: RunConfig | None, folder: Path, targets: Targets, supplied: Mapping[str, Any]
) -> Adapter:
    """The run's own adapter; for a folder of PEFT's, the one that goes on from it.

    Raises:
        UserError: There is none that can be merged.
    """
    target = config.peft if config is not None else peft_target(folder)
    if target is None:
        raise UserError(f"{folder} holds an adapter, and its config.yaml has no peft: section.")
    adapter: Adapter = targets.build(target, supplied)
    if not callable(getattr(adapter, "merger", None)):
        raise UserError(
            f"Adapters of `{target.name}` can't be merged: it has no method `merger`.",
            fix="ask its author for one; automodel_core/protocols.py says what it does",
        )
    return adapter


def prompts_of(
    config: RunConfig, targets: Targets, tokenizer: PreTrainedTokenizerBase, supplied: dict
) -> list[list[int]]:
    """The prompts of the run's validation data, or of its training data if it has none. None of
    data that isn't tokens before it is collated, as conversations with images.

    Raises:
        UserError: The data is not there any more.
    """
    sets = [*validation_targets(config).values(), config.dataset]
    dataset = targets.build(sets[0], supplied)
    if "input_ids" not in dataset[0]:
        return []
    questions = questions_from(dataset, tokenizer)
    return [each.prompt_ids for each in questions]
