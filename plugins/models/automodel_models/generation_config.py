"""Generation settings that came with a model must not stop it from being saved hours later."""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory

from transformers import GenerationConfig

from automodel_core.errors import UserError

logger = logging.getLogger(__name__)


def make_savable(config: GenerationConfig, name: str) -> None:
    """See that `config` can be saved, and mend the contradiction that published models have.

    Llama 2 and others came with a temperature beside `do_sample: false`. transformers loads that,
    and before 5.20 or so refuses to save it.

    Args:
        config: The model's own; changed in place if need be.
        name: What to call the model.

    Raises:
        UserError: It can't be saved even with sampling on.
    """
    if _refusal(config) is None:
        return
    config.do_sample = True
    refusal = _refusal(config)
    if refusal:
        raise UserError(
            f"The generation_config.json of {name} can't be saved again: {refusal}",
            fix="mend or remove that file",
        )
    logger.warning(
        "The generation settings of %s sample without do_sample; the saved model has it on.", name
    )


def _refusal(config: GenerationConfig) -> str | None:
    """Why transformers won't save it."""
    try:
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
    except ValueError as error:
        return " ".join(str(error).split())[:300]
    return None
