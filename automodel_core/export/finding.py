"""What a user means by RUN_OR_CHECKPOINT."""

from __future__ import annotations

from pathlib import Path

import attrs

from automodel_core.errors import UserError
from automodel_core.train.checkpoint import read_manifest
from automodel_core.train.run_folder import checkpoint_at


@attrs.frozen
class Saved:
    """A model or an adapter on the disk.

    Attributes:
        folder: Its weights, tokenizer and configuration.
        checkpoint: The checkpoint that it is a part of, whole and checked; None for a folder that
            no run of ours saved.
    """

    folder: Path
    checkpoint: Path | None

    @property
    def is_adapter(self) -> bool:
        """Whether it needs a base model. Whole models have a config.json of their own."""
        return not (self.folder / "config.json").is_file()

    @property
    def title(self) -> Path:
        """The folder to call it by."""
        return self.checkpoint or self.folder


def find_saved(path: Path) -> Saved:
    """Find the model in a run folder (its latest checkpoint), a checkpoint, or a model's folder.

    Raises:
        UserError: There is none, or the checkpoint is damaged.
    """
    checkpoint = checkpoint_at(path)
    if checkpoint is not None:
        read_manifest(checkpoint)
        return Saved(checkpoint.resolve() / "model", checkpoint.resolve())
    place = path.expanduser().resolve()
    if any((place / name).is_file() for name in ("adapter_config.json", "config.json")):
        return Saved(place, None)
    raise UserError(
        f"{path} holds neither a run with a checkpoint, nor a checkpoint, nor a model.",
        fix="name a folder that `automodel runs` lists, one of its epoch_E_step_S folders, or one "
        "that PEFT's or transformers' save_pretrained wrote",
    )
