"""Two spellings of one key: the other one is moved to ours, with its marks, before anything is
checked."""

from __future__ import annotations

from automodel_core.config.document import Document, dotted
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
    ("distributed", "activation_checkpointing"): ("activation_checkpointing",),
    ("model", "dtype"): ("model", "torch_dtype"),
    ("clip_grad_norm", "max_norm"): ("clip_grad_norm",),
    ("recipe", "_target_"): ("recipe",),
    ("seed",): ("rng", "seed"),
}


def our_spelling(path: ConfigPath) -> ConfigPath:
    """A path as the schema has it."""
    for other, ours in MOVES.items():
        if path[: len(other)] == other:
            return (*ours, *path[len(other) :])
    return path


def spellings_in(section: ConfigPath) -> list[str]:
    """The keys of a section that are other spellings."""
    return [other[-1] for other in MOVES if other[:-1] == section]


def move_aliases(document: Document) -> None:
    """Rewrite `document` in our spelling. A key that stands there in both spellings, with different
    values, is noted in its problems."""
    for other, ours in MOVES.items():
        if isinstance(document.get(other[:-1]), dict) and document.has(other):
            move(document, other, ours)
    if document.get(("logger",)) == {}:
        document.cut(("logger",))


def move(document: Document, other: ConfigPath, ours: ConfigPath) -> None:
    """Move one value, with its marks."""
    piece = document.part(other)
    piece.spellings[()] = other
    if ours == other[:-1]:
        if len(document.get(ours)) == 1:  # beside other keys it isn't this spelling
            document.cut(ours)
            document.graft(ours, piece)
        return
    document.cut(other)
    section = ours[:-1]
    if document.get(section) is None:
        if document.has(section):
            document.cut(section)
        document.graft(section, Document({}, {(): piece.keys[()]}, {(): piece.keys[()]}))
    if not isinstance(document.get(section), dict):
        return  # and it will be told so
    if not document.has(ours):
        document.graft(ours, piece)
    elif document.get(ours) != piece.tree:
        document.problems.append(conflict(document, other, ours, piece))


def conflict(document: Document, other: ConfigPath, ours: ConfigPath, piece: Document) -> Problem:
    return Problem(
        f"`{dotted(other)}` and `{document.name(ours)}` are the same key, with different values.",
        piece.values[()],
        f"the other one is at {document.place(ours)}; keep one of them",
    )
