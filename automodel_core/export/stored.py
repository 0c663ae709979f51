"""The tensors of a folder of safetensors files, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open

from automodel_core.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@attrs.frozen
class StoredTensors:
    """Tensors by name, and the file that each is in.

    Attributes:
        folder: Where the files are.
        files: Name -> file name, in the order of the files.
    """

    folder: Path
    files: Mapping[str, str]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, mapped from its file: it takes memory while something refers to it.

        The file is opened for each, so that what was read before can be let go.
        """
        path = self.folder / self.files[name]
        try:
            with safe_open(path, "pt") as stored:
                return stored.get_tensor(name)
        except SafetensorError as error:
            raise damaged(path, error) from None

    def bytes_on_disk(self) -> int:
        """The size of all files."""
        return sum((self.folder / each).stat().st_size for each in set(self.files.values()))


def has_safetensors(folder: Path) -> bool:
    """Whether the weights in `folder` can be read by `open_stored`."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def open_stored(folder: Path) -> StoredTensors:
    """Read the headers of a model's files.

    Raises:
        UserError: A file is missing or damaged.
    """
    files: dict[str, str] = {}
    for file in weight_files(folder):
        path = folder / file
        if not path.is_file():
            raise UserError(f"{folder} is only half here: {file} is missing.", fix="copy it again")
        try:
            with safe_open(path, "pt") as stored:
                files |= dict.fromkeys(stored.keys(), file)
        except SafetensorError as error:
            raise damaged(path, error) from None
    return StoredTensors(folder, files)


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files that make up the model in `folder`, there or not."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / INDEX} is no index of weights.", fix="copy it again") from None


def damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged: {error}", fix="copy or download it again")
