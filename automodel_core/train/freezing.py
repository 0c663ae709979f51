"""`freeze_config`: which parts of the model keep their weights."""

from __future__ import annotations

import attrs
from transformers import PreTrainedModel

from automodel_core.config.schema import FreezeConfig
from automodel_core.errors import UserError
from automodel_core.parts import Part, parts_of


def freeze(model: PreTrainedModel, section: FreezeConfig | None) -> list[str]:
    """Take the gradient from the parameters of the parts that the YAML names.

    Adapters leave frozen modules alone, so it comes before them. The model may be without weights.

    Returns:
        What was frozen, a line for each part.

    Raises:
        UserError: The model has no such part, or nothing would be left to train.
    """
    parts, lines = parts_of(model), []
    for key, wanted in attrs.asdict(section).items() if section else ():
        if not wanted:
            continue
        name = key.removeprefix("freeze_")
        if name not in parts:
            raise _absent(model, key, parts)
        part = parts[name]
        for parameter in part.parameters.values():
            parameter.requires_grad_(False)
        lines.append(f"Frozen: {_described(model, name, part)}")
    if lines and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "freeze_config freezes every parameter of this model.",
            fix="leave one part to train, or train an adapter with a peft: section",
            path=("freeze_config",),
        )
    return lines


def _absent(model: PreTrainedModel, key: str, parts: dict[str, Part]) -> UserError:
    has = ", ".join(f"freeze_{name}" for name in parts)
    return UserError(
        f"{type(model).__name__} has no {_noun(key.removeprefix('freeze_'))} that could be told "
        "by its configuration.",
        fix=f"leave {key} out; there are {has}",
        path=("freeze_config", key),
    )


def _described(model: PreTrainedModel, name: str, part: Part) -> str:
    count = sum(parameter.numel() for parameter in part.parameters.values())
    where = ", ".join(part.modules) if part.modules != ("",) else "the whole model"
    head = model.get_output_embeddings()
    shared = {id(parameter) for parameter in part.parameters.values()}
    tied = name == "embeddings" and head is not None and id(head.weight) in shared
    also = "; the output embeddings, which share them, too" if tied else ""
    return f"{_noun(name)} ({where}), {count:,} parameters{also}."


def _noun(name: str) -> str:
    return name.replace("_", " ")
