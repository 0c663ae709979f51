"""A folder that the YAML names for a logger's files."""

from __future__ import annotations

from pathlib import Path

from automodel_core.errors import UserError


def make_folder(save_dir: str) -> Path:
    """Create it now, since a run that has begun only drops a logger that cannot write.

    Raises:
        UserError: It cannot be created.
    """
    folder = Path(save_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made: {error.strerror}.",
            fix="write another save_dir, or leave it out for the run folder",
            argument="save_dir",
        ) from None
    return folder
