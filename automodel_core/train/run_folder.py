"""The run folder: `checkpoint_dir`, its lock, its logs and the link to the latest checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from pathlib import Path
from typing import TextIO

from automodel_core.errors import ConfigPath, UserError

try:
    import fcntl
except ImportError:  # Windows, where only importing must work
    fcntl = None

CHECKPOINT_NAME = re.compile(r"epoch_(\d+)_step_(\d+)")
# What the names of those begin with that are being written or removed.
UNFINISHED, REMOVED = ".saving-", ".removing-"
LOGS = ("training.jsonl", "validation.jsonl", "answers_before.json")
# In a folder that `--fresh` opened in a launch that may start it again: which launch it was.
LAUNCH = ".launch"
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


def this_launch() -> str | None:
    """What tells this launch from others, however often a launcher begins it again or torchrun
    restarts its processes; None if nothing does either."""
    if named := os.environ.get("AUTOMODEL_LAUNCH"):
        return named
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return run and f"{run} by process {os.getppid()} of {socket.gethostname()}"


def opened_by(launch: str, folder: Path) -> Path | None:
    """The fresh folder beside `folder` that this launch has opened, before a restart; or None."""
    for marker in sorted(folder.parent.glob(f"{folder.name}*/{LAUNCH}")):
        if marker.read_text() == launch:
            return marker.parent
    return None


def open_run_folder(path: str, *, fresh: bool) -> Path:
    """Create the run folder and prove that it can be written.

    Raises:
        UserError: It cannot be created or written.
    """
    folder, launch = Path(path).expanduser(), this_launch()
    if fresh:
        folder = (launch and opened_by(launch, folder)) or fresh_sibling(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh and launch:
            (folder / LAUNCH).write_text(launch)
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


_held: set[TextIO] = set()


def _let_go() -> None:
    """Close what a forked process inherited: it would keep the lock after the run has ended."""
    for handle in _held:
        handle.close()
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


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
        _held.add(handle)
        try:
            yield
        finally:
            _held.discard(handle)


def is_locked(folder: Path) -> bool:
    """Whether a run holds the folder at this moment."""
    if fcntl is None or not (folder / "run.lock").exists():
        return False
    with (folder / "run.lock").open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def check_disk_space(folder: Path, needed: int, what: str, fix: str, path: ConfigPath = ()) -> None:
    """Refuse at once what cannot fit.

    Args:
        folder: Where it goes.
        needed: Estimated bytes.
        what: What it is, for the message.
        fix: What to do about it.
        path: The key that chose the folder.

    Raises:
        UserError: with the arithmetic.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"Not enough room for {what}: about {needed / 2**30:.1f} GiB are needed, and {folder} "
            f"has {free / 2**30:.1f} GiB free.",
            fix=fix,
            path=path,
        )


def point_to(checkpoint: Path, name: str) -> None:
    """Let `name` (latest, best) stand for a published checkpoint: a link, or a text file where
    links don't work."""
    aside = checkpoint.with_name(f".{name}-new")
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(checkpoint.name)
    except OSError:
        aside.write_text(checkpoint.name + "\n")
    os.replace(aside, checkpoint.with_name(name))


def pointed_to(folder: Path, name: str) -> Path | None:
    """The checkpoint that `name` stands for, if it is still there."""
    link = folder / name
    if link.is_symlink():
        target = link.resolve()
    elif link.is_file():
        target = folder / link.read_text().strip()
    else:
        return None
    return target if target.is_dir() else None


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; the newest published one if the link is gone."""
    found = checkpoints_in(folder)
    return pointed_to(folder, "latest") or (found[-1] if found else None)


def checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that a path means: the latest of a run folder, itself, what `latest` or `best`
    stand for, or the one whose `model/` it is; None if it means none."""
    place = path.expanduser()
    if place.is_file():  # `latest` or `best` where links don't work
        place = pointed_to(place.parent, place.name) or place
    place = place.resolve()
    owner = place.parent if place.name == "model" else place
    candidates = (latest_checkpoint(place), owner)
    return next((each for each in candidates if each and (each / "manifest.json").is_file()), None)


def go_back_to(checkpoint: Path, folder: Path) -> None:
    """Let a run go on from `checkpoint`, so that a run killed before its next one does so too.

    Later checkpoints of the folder are moved to `superseded/`: the run is about to pass those steps
    again. A checkpoint of another folder brings that run's logs along.
    """
    if checkpoint.parent != folder.resolve():
        for name in LOGS:
            if (checkpoint.parent / name).exists():
                shutil.copyfile(checkpoint.parent / name, folder / name)
        return
    found = checkpoints_in(folder.resolve())
    later = found[found.index(checkpoint) + 1 :]
    if later:
        point_to(checkpoint, "latest")
    for each in later:
        aside = folder / "superseded" / each.name
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        each.rename(aside)
    if pointed_to(folder, "best") is None:
        (folder / "best").unlink(missing_ok=True)


def prune(folder: Path, keep_last: int | None) -> None:
    """Remove all but the newest checkpoints; `latest` and `best` always stay."""
    if keep_last is None:
        return
    linked = {pointed_to(folder, "latest"), pointed_to(folder, "best")}
    for checkpoint in checkpoints_in(folder.resolve())[:-keep_last]:
        if checkpoint not in linked:
            shutil.rmtree(withdrawn(checkpoint))


def withdrawn(checkpoint: Path) -> Path:
    """Where a published checkpoint stands from now on, to be removed. First it loses its name, at
    once: whoever is killed in the middle of removing it leaves nothing that looks like one."""
    aside = checkpoint.with_name(f"{REMOVED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)
