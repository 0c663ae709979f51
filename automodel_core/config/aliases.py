"""Two spellings of one key: the other one is moved to ours, with its marks, before anything is
checked."""

from __future__ import annotations

from typing import Any

from automodel_core.config.document import Document
from automodel_core.config.overrides import dotted
from automodel_core.config.report import Problem
from automodel_core.errors import ConfigPath

# Other spelling -> ours.
MOVES: dict[ConfigPath, ConfigPath] = {
    ("step_scheduler", "ckpt_every_steps"): ("checkpoint", "save_every_steps"),
    ("step_scheduler", "local_batch_size"): ("dataloader", "batch_size"),
    ("lr_scheduler", "lr_warmup_steps"): ("lr_scheduler", "warmup_steps"),
    ("logger", "wandb_project"): ("wandb", "project"),
    ("logger", "wandb_entity"): ("wandb", "entity"),
    ("logger", "wandb_exp_name"): ("wandb", "name"),
    ("logger", "wandb_save_dir"): ("wandb", "save_dir"),
    ("wandb", "dir"): ("wandb", "save_dir"),
    ("peft", "target_modules"): ("peft", "include_modules"),
    ("distributed", "strategy"): ("distributed", "_target_"),
    ("model", "dtype"): ("model", "torch_dtype"),
    ("clip_grad_norm", "max_norm"): ("clip_grad_norm",),
    ("seed",): ("rng", "seed"),
}


def move_aliases(document: Document) -> list[Problem]:
    """Rewrite `document` in our spelling.

    Returns:
        One problem for every key that was given in both spellings with different values.
    """
    problems = []
    for other, ours in MOVES.items():
        holder = lookup(document.tree, other[:-1])
        if not isinstance(holder, dict) or other[-1] not in holder:
            continue
        if conflict := move(document, other, ours):
            problems.append(conflict)
    if document.tree.get("logger") == {}:
        del document.tree["logger"]
    return problems


def move(document: Document, other: ConfigPath, ours: ConfigPath) -> Problem | None:
    """Move one value and its marks."""
    value = lookup(document.tree, other[:-1]).pop(other[-1])
    source = Document(None, dict(document.keys), dict(document.values))
    existing = None if ours == other[:-1] else lookup(document.tree, ours)
    if existing is not None and existing != value:
        return Problem(
            f"`{dotted(other)}` and `{dotted(ours)}` are the same key, with different values.",
            source.values[other],
            f"the other one is at {document.place(ours)}; keep one of them",
        )
    document.forget(other)
    if ours == other[:-1]:
        document.forget(ours)
    elif len(ours) > 1 and not isinstance(lookup(document.tree, ours[:-1]), dict):
        lookup(document.tree, ours[:-2])[ours[-2]] = {}
        document.keys[ours[:-1]] = document.values[ours[:-1]] = source.keys[other]
    lookup(document.tree, ours[:-1])[ours[-1]] = value
    for marks, old in ((document.keys, source.keys), (document.values, source.values)):
        for path, mark in old.items():
            if path[: len(other)] == other:
                marks[(*ours, *path[len(other) :])] = mark
    return None


def lookup(tree: Any, path: ConfigPath) -> Any:
    """The value at `path`; None where there is none."""
    for name in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(name)
    return tree
