"""What may change between a checkpoint and the run that goes on from it.

Every key of the effective configuration falls under one of three rules, by the longest prefix below
that fits it. A key that nothing lists may never change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from automodel_core.config.reading import load_files
from automodel_core.config.report import ConfigError
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath, UserError
from automodel_core.train.checkpoint import damaged, read_manifest
from automodel_core.train.context import RunContext
from automodel_core.train.run_folder import checkpoints_in, latest_checkpoint


class Rule(Enum):
    """What a changed key means for a resumed run."""

    FREE = "may change freely"
    OVERRIDE = "may change with --resume-override"
    NEVER = "may never change"


RULES: Mapping[tuple[str, ...], Rule] = {
    # Where things are, how they are shown, and when to stop.
    ("checkpoint",): Rule.FREE,
    ("wandb",): Rule.FREE,
    ("loggers",): Rule.FREE,
    ("slurm",): Rule.FREE,
    ("launcher",): Rule.FREE,
    ("plugins",): Rule.FREE,
    ("deterministic",): Rule.FREE,
    ("recipe",): Rule.FREE,
    ("guards",): Rule.FREE,
    ("generation_eval",): Rule.FREE,
    ("early_stopping",): Rule.FREE,
    ("validation_dataset",): Rule.FREE,
    ("validation_dataloader",): Rule.FREE,
    ("step_scheduler", "max_steps"): Rule.FREE,
    ("step_scheduler", "num_epochs"): Rule.FREE,
    ("step_scheduler", "val_every_steps"): Rule.FREE,
    # On what the same work is done.
    ("distributed",): Rule.FREE,
    ("dist_env",): Rule.FREE,
    ("dataloader",): Rule.FREE,
    ("compile",): Rule.FREE,
    ("activation_checkpointing",): Rule.FREE,
    ("model", "attn_implementation"): Rule.FREE,
    ("model", "use_sdpa_patching"): Rule.FREE,
    ("model", "sdpa_method"): Rule.FREE,
    ("model", "use_liger_kernel"): Rule.FREE,
    # What the rest of the run does differently, on purpose.
    ("optimizer",): Rule.OVERRIDE,
    ("lr_scheduler",): Rule.OVERRIDE,
    ("clip_grad_norm",): Rule.OVERRIDE,
    ("loss_fn",): Rule.OVERRIDE,
    ("dataloader", "batch_size"): Rule.OVERRIDE,
    ("step_scheduler", "grad_acc_steps"): Rule.OVERRIDE,
    ("step_scheduler", "global_batch_size"): Rule.OVERRIDE,
    # Another optimizer cannot read the old one's state.
    ("optimizer", "_target_"): Rule.NEVER,
    # Another order would repeat some samples and skip others.
    ("dataloader", "shuffle"): Rule.NEVER,
    ("dataloader", "shuffle_window"): Rule.NEVER,
    ("dataloader", "group_by_length"): Rule.NEVER,
    ("dataloader", "collate_fn"): Rule.NEVER,
}


def rule_for(path: ConfigPath) -> Rule:
    """The rule of the longest listed prefix of `path`."""
    for length in range(len(path), 0, -1):
        if (rule := RULES.get(path[:length])) is not None:
            return rule
    return Rule.NEVER


def checkpoint_to_resume(folder: Path, context: RunContext) -> Path | None:
    """The checkpoint that this run goes on from, whole and checked; None starts at step 0.

    Raises:
        UserError: It is damaged or no checkpoint, or its configuration was another one.
    """
    if context.resume == "none":
        if checkpoints_in(folder):
            raise UserError(
                f"{folder} already holds a run; --resume none would mix two runs in one folder.",
                fix="pass --fresh instead: it starts a new folder beside that one",
                path=("checkpoint", "checkpoint_dir"),
            )
        return None
    if context.resume == "latest":
        checkpoint = latest_checkpoint(folder.resolve())
    else:
        checkpoint = Path(context.resume).expanduser().resolve()
    if checkpoint is not None:
        read_manifest(checkpoint)
        if checkpoints_in(folder) and checkpoint.parent != folder.resolve():
            raise UserError(
                f"{folder} already holds a run, and {checkpoint} is of another one.",
                fix="pass --fresh to start a new folder from it, or choose another checkpoint_dir",
                path=("checkpoint", "checkpoint_dir"),
            )
        saved_in = checkpoint / "config.yaml"
        try:
            saved = load_files([str(saved_in)]).tree
        except ConfigError:
            raise damaged(checkpoint, saved_in.name, "is no configuration") from None
        check_resume(
            comparable(saved),
            comparable(context.effective),
            override=context.resume_override,
            place=context.place,
            saved_in=str(saved_in),
        )
    return checkpoint


def check_same_data(checkpoint: Path, fingerprint: str, path: ConfigPath) -> None:
    """Refuse data that changed under an unchanged name: its order would mean other samples."""
    saved = json.loads((checkpoint / "manifest.json").read_text()).get("data")
    if saved != fingerprint:
        raise UserError(
            f"The data has changed since {checkpoint} was saved: its rows, tokenizer or template "
            "are others.",
            fix="put the old data back, or pass --fresh to start a new run",
            path=path,
        )


def comparable(value: Any) -> Any:
    """A configuration tree in which a `${...}` is the text that stands in the file."""
    if isinstance(value, Mapping):
        return {k: comparable(v) for k, v in value.items() if not k.startswith("x-")}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return value.text if isinstance(value, Variable) else value


def check_resume(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    override: bool,
    place: Callable[[ConfigPath], object],
    saved_in: str,
) -> list[str]:
    """Compare the configuration of a checkpoint with the one that wants to go on from it.

    Args:
        saved: The checkpoint's effective configuration, a plain tree.
        current: This run's.
        override: Whether `--resume-override` was given.
        place: Where a value of this run was written.
        saved_in: The file that holds `saved`, for messages.

    Returns:
        One line for every change that `--resume-override` lets through.

    Raises:
        UserError: Something changed that may not; the first such key's place is shown.
    """
    changes = list(differences(saved, current))
    never = [change for change in changes if rule_for(change[0]) is Rule.NEVER]
    on_purpose = [change for change in changes if rule_for(change[0]) is Rule.OVERRIDE]
    if never:
        raise UserError(
            "This checkpoint can't go on with another configuration:\n"
            + "\n".join(describe(change, place, saved_in) for change in never),
            fix="put the old values back, or pass --fresh to start a new run",
            path=never[0][0],
        )
    if on_purpose and not override:
        raise UserError(
            "The rest of this run would train differently:\n"
            + "\n".join(describe(change, place, saved_in) for change in on_purpose),
            fix="pass --resume-override if you mean it, or put the old values back",
            path=on_purpose[0][0],
        )
    return [describe(change, place, saved_in) for change in on_purpose]


def differences(
    saved: Any, current: Any, path: ConfigPath = ()
) -> Iterator[tuple[ConfigPath, Any, Any]]:
    """Every leaf that differs, with both values; one that is missing on a side counts as none."""
    if isinstance(saved, Mapping) or isinstance(current, Mapping):
        left = saved if isinstance(saved, Mapping) else {}
        right = current if isinstance(current, Mapping) else {}
        for name in dict.fromkeys([*left, *right]):
            yield from differences(left.get(name), right.get(name), (*path, name))
    elif saved != current:
        yield path, saved, current


def describe(
    change: tuple[ConfigPath, Any, Any], place: Callable[[ConfigPath], object], saved_in: str
) -> str:
    """Both values of a changed key, and where each stands."""
    path, before, now = change
    where = place(path)
    return (
        f"  {'.'.join(map(str, path))}: {before!r} in {saved_in}, "
        f"{now!r} in {where if where is not None else 'the defaults'}"
    )
