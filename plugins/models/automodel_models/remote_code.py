"""Python that comes with a model. The core lets `trust_remote_code: true` through only if the
command line agrees; without it, nothing of the model's own is run."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from automodel_core.errors import UserError

HOW_TO_TRUST = (
    "read them; if you trust them, write trust_remote_code: true beside the model and "
    "add --trust-remote-code to the command"
)


def check_needs_no_code(name: str, config: dict[str, Any], argument: str) -> None:
    """Refuse a model that only its own Python can build; nothing of it is run to find out.

    A model that brings code (`auto_map`) for an architecture that transformers has itself is fine:
    transformers' own is used.

    Raises:
        UserError: transformers doesn't have the architecture.
    """
    model_type = config.get("model_type")
    known = model_type in CONFIG_MAPPING and (
        CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if "auto_map" in config and not known:
        raise UserError(
            f"{name} is built by Python files of its own, which are not run unless you say so.",
            fix=HOW_TO_TRUST,
            argument=argument,
        )
