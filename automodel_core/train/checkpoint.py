"""Publishing checkpoints, and trusting them again.

A checkpoint is one directory, `epoch_E_step_S/`, that appears complete or not at all:

    model/                 opens in plain transformers: weights, config, tokenizer, chat template
    training/optimizer/    the optimizer's tensors, named `<parameter>/<key>`, in safetensors
    training/state.json    step, cursor, counts; beside it the random state of every rank
    config.yaml            the effective configuration
    manifest.json          versions, sizes and hashes of every file

Nothing in it is a pickle (unless `model_save_format: torch_save` asks for one, for the weights
alone), and reading it never unpickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any

from automodel_core.errors import UserError
from automodel_core.train.run_folder import (
    REMOVED,
    UNFINISHED,
    checkpoints_in,
    point_to,
    withdrawn,
)
from automodel_core.train.together import Together

FORMAT, MANIFEST = 1, "manifest.json"

# Files are hashed and flushed by so many threads.
SEALERS = 4


class CheckpointWriter:
    """Writes checkpoints one after another, in this thread or in one beside it.

    In the background a save costs the run only its staging, the copy of what is to be written. What
    went wrong there is raised by the next call.

    Attributes:
        background: Whether it writes beside the run.
        published: Called in the run's own thread with each checkpoint that is complete.
        together: The ranks, each of which writes its part.
    """

    def __init__(
        self, *, background: bool, published: Callable[[Path], None], together: Together
    ) -> None:
        self.background = background
        self.together = together
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.published = published
        self._pending: Future[Path] | None = None

    def write(self, target: Path, fill: Callable[[Path], None], manifest: dict[str, Any]) -> None:
        """Start to write `target`, when the one before it is done."""
        self.settle()
        if self._pool is None:
            self.published(write_checkpoint(target, fill, manifest, self.together))
        else:
            self._pending = self._pool.submit(
                write_checkpoint, target, fill, manifest, self.together
            )

    def poll(self) -> None:
        """Announce a checkpoint that has become complete meanwhile."""
        if self._pending is not None and self._pending.done():
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.published(pending.result())

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, whatever becomes of it. A run that ends by
        an error still holds its folder, which another run must not find half written."""
        if self._pending is not None and self.together.size == 1:  # others may be gone
            wait([self._pending])


def write_checkpoint(
    target: Path, fill: Callable[[Path], None], manifest: dict[str, Any], together: Together
) -> Path:
    """Write aside, flush, verify, publish with one rename, and move `latest`.

    Args:
        target: The directory to publish, the same for all ranks.
        fill: Puts this rank's part into the directory it is given.
        manifest: What to record beside sizes and hashes.
        together: The ranks; the first of them makes, seals and publishes the directory.

    Returns:
        `target`.

    Raises:
        UserError: The disk is full or not writable; older checkpoints are untouched.
    """
    aside, is_main = target.with_name(f"{UNFINISHED}{target.name}"), together.rank == 0

    def begin() -> None:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

    def publish() -> None:
        if is_main:
            seal(aside, manifest)
            before = withdrawn(target) if target.exists() else None
            os.rename(aside, target)
            flush(target.parent)
            point_to(target, "latest")
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)

    try:
        together.do(begin)
        fill(aside)
        together.do(publish)
        return target
    except BaseException as error:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
        if (said := disk_trouble(error)) is None:
            raise
        raise UserError(
            f"The checkpoint {target} could not be written: {said}. Earlier checkpoints are "
            "unharmed.",
            fix="free some space, then run the same command again to resume from the last one",
            path=("checkpoint", "checkpoint_dir"),
        ) from error


def disk_trouble(error: BaseException | None) -> str | None:
    """What the system said, if it was a write that failed.

    safetensors, tokenizers and torch wrap it in exceptions of their own, with its words in theirs.
    """
    if error is None:
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
    said = next((each for each in words if each in str(error)), None)
    return said or disk_trouble(error.__cause__ or error.__context__)


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed run was still writing or removing."""
    for kind in (UNFINISHED, REMOVED):
        for aside in folder.glob(f"{kind}*"):
            shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Flush every file to the disk and write the manifest of what is there."""

    def sealed(path: Path) -> dict[str, Any]:
        digest = sha256(path)
        flush(path)
        return {"bytes": path.stat().st_size, "sha256": digest}

    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(SEALERS) as pool:  # hashing and flushing both leave Python
        found = zip(paths, pool.map(sealed, paths), strict=True)
        files = {str(path.relative_to(folder)): each for path, each in found}
    versions = {name: version(name) for name in ("automodel-core", "torch", "transformers")}
    content = {"format": FORMAT, "versions": versions, **manifest, "files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(content, indent=1))
    flush(path)


def amend_manifest(checkpoint: Path, changes: dict[str, Any]) -> None:
    """Replace entries of a published checkpoint's manifest, at once or not at all."""
    aside = checkpoint / f".{MANIFEST}-new"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    aside.write_text(json.dumps(manifest | changes, indent=1))
    flush(aside)
    aside.replace(checkpoint / MANIFEST)


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest, after checking that every file it lists is whole.

    Raises:
        UserError: Not a checkpoint, or a damaged one; the file is named.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        files = {name: (x["bytes"], x["sha256"]) for name, x in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{checkpoint} is not a checkpoint of automodel: {path.name} is missing or unreadable.",
            fix="pass --resume the path of an epoch_E_step_S folder, or --fresh",
        ) from None
    for name, (size, _) in files.items():
        if not (checkpoint / name).is_file():
            raise damaged(checkpoint, name, "is missing")
        if (checkpoint / name).stat().st_size != size:
            raise damaged(checkpoint, name, "has changed since it was saved")
    with ThreadPoolExecutor(SEALERS) as pool:
        digests = pool.map(sha256, (checkpoint / name for name in files))
        for (name, (_, digest)), found in zip(files.items(), digests, strict=True):
            if found != digest:
                raise damaged(checkpoint, name, "has changed since it was saved")
    return manifest


def best_checkpoint(folder: Path, metric: str) -> Path | None:
    """The checkpoint of a run folder whose validation metric is lowest."""
    scored = []
    for checkpoint in checkpoints_in(folder):
        metrics = json.loads((checkpoint / MANIFEST).read_text()).get("metrics", {})
        if metric in metrics:
            scored.append((metrics[metric], checkpoint))
    return min(scored, default=(None, None))[1]


def damaged(checkpoint: Path, name: str, how: str) -> UserError:
    return UserError(
        f"The checkpoint {checkpoint} is damaged: {name} {how}.",
        fix="resume from an older one with --resume PATH",
    )
