"""Writing a model's folder in shards, and publishing it by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from automodel_core.errors import UserError
from automodel_core.export.stored import INDEX, SINGLE
from automodel_core.train.checkpoint import disk_trouble, flush
from automodel_core.train.run_folder import check_disk_space


class ShardWriter:
    """Collects tensors until a shard is full, and writes it: at most one shard is in memory.

    Args:
        folder: Where to.
        shard_bytes: The most that the tensors of one file take; a larger tensor has its own file.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.shapes: dict[str, torch.Size] = {}
        self._shards: list[list[str]] = []
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor, which must not change any more."""
        if self._pending and self._pending_bytes + tensor.nbytes > self.shard_bytes:
            self._write()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes
        self.shapes[name] = tensor.shape

    def finish(self) -> None:
        """Write the last shard and, if there are several, the index; give the files their names."""
        self._write()
        count = len(self._shards)
        if count == 1:
            os.rename(self.folder / _aside(1), self.folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards, 1):
            file = f"model-{number:05}-of-{count:05}.safetensors"
            os.rename(self.folder / _aside(number), self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        self._shards.append(list(self._pending))
        file = self.folder / _aside(len(self._shards))
        save_file(self._pending, file, metadata={"format": "pt"})
        self._pending, self._pending_bytes = {}, 0


def _aside(number: int) -> str:
    """What a shard is called until it is known how many there are."""
    return f"shard-{number}.safetensors"


def check_free(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        UserError: There is something called `target` already.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f"{target} is there already.", fix="name another folder with --out, or remove it"
        )


@contextmanager
def published(target: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end, or disappears if anything goes wrong.

    Raises:
        UserError: `target` is there already, or the disk is full or not writable.
    """
    check_free(target)
    aside = target.with_name(f".writing-{target.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        fix = "choose a folder on a larger disk with --out"
        check_disk_space(aside, needed_bytes, "the model", fix)
        yield aside
        for path in aside.rglob("*"):
            flush(path)
        os.rename(aside, target)
        flush(target.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, UserError) or (said := disk_trouble(error)) is None:
            raise
        raise UserError(f"{target} could not be written: {said}.", fix="choose --out") from error
