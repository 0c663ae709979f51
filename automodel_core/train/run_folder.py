"""The run folder: `checkpoint_dir`, its lock, its logs and the link to the latest checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from automodel_core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where only importing must work
    fcntl = None

CHECKPOINT_NAME = re.compile(r"epoch_(\d+)_step_(\d+)")
CHECKPOINT_DIR_KEY = ("checkpoint", "checkpoint_dir")


def checkpoints_in(folder: Path) -> list[Path]:
    """The published checkpoints of a run folder, oldest first."""
    found = [
        (int(match[2]), child)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := CHECKPOINT_NAME.fullmatch(child.name))
    ]
    return [child for _, child in sorted(found)]


def fresh_sibling(folder: Path) -> Path:
    """`folder` if it holds no run yet, else the first of folder-2, folder-3, ... that doesn't."""
    candidate, number = folder, 1
    while candidate.is_dir() and any(candidate.iterdir()):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def open_run_folder(path: str, *, fresh: bool) -> Path:
    """Create the run folder and prove that it can be written.

    Raises:
        UserError: It cannot be created or written.
    """
    folder = Path(path).expanduser()
    if fresh:
        folder = fresh_sibling(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written: {error.strerror or error}.",
            fix="choose another checkpoint_dir",
            path=CHECKPOINT_DIR_KEY,
        ) from None
    return folder


@contextlib.contextmanager
def locked(folder: Path):
    """Hold the run folder; the system releases the lock however the process ends.

    Raises:
        UserError: Another run holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder / "run.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise UserError(
                f"Another run ({holder}) is using {folder}.",
                fix="wait for it, choose another checkpoint_dir, or pass --fresh",
                path=CHECKPOINT_DIR_KEY,
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Refuse a run whose checkpoints cannot fit.

    Args:
        folder: Where they go.
        needed: Estimated bytes.
        what: What they are, for the message.

    Raises:
        UserError: with the arithmetic.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{what} need about {needed / 2**30:.1f} GiB, but {folder} has "
            f"{free / 2**30:.1f} GiB free.",
            fix="choose a checkpoint_dir on a larger disk, or save less often",
            path=CHECKPOINT_DIR_KEY,
        )


def point_latest_to(checkpoint: Path) -> None:
    """Let `latest` name a published checkpoint: a link, or a text file where links don't work."""
    link = checkpoint.with_name("latest")
    aside = checkpoint.with_name(".latest-new")
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(checkpoint.name)
    except OSError:
        aside.write_text(checkpoint.name + "\n")
    os.replace(aside, link)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; the newest published one if the link is gone."""
    link = folder / "latest"
    if link.is_symlink() and link.exists():
        return link.resolve()
    if link.is_file():
        return folder / link.read_text().strip()
    found = checkpoints_in(folder)
    return found[-1] if found else None
