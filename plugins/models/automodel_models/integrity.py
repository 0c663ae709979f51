"""Is a file of weights whole? Read from its header, before anything is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from automodel_core.errors import UserError

# What a git clone without Git LFS leaves in place of a large file.
LFS_POINTER = b"version https://git-lfs"


def check_weight_file(path: Path, argument: str) -> None:
    """Refuse a file that was cut short, or that only stands for another.

    Raises:
        UserError: It isn't there, is a Git LFS pointer, or (safetensors) is shorter than its header
            says.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.", argument=argument)
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(
            f"{path} is a Git LFS pointer: the weights themselves were not downloaded.",
            fix="run `git lfs pull` in that folder",
            argument=argument,
        )
    if path.suffix == ".safetensors" and path.stat().st_size != _promised_size(path):
        raise UserError(
            f"{path} was cut short or is damaged: its size isn't what its header says.",
            fix="copy or download it again",
            argument=argument,
        )


def _promised_size(path: Path) -> int | None:
    """Bytes that a safetensors file must have; None if it has no readable header.

    The format: 8 bytes with the header's length, the header, then all tensors without a gap
    (https://huggingface.co/docs/safetensors/index#format).
    """
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(min(length, path.stat().st_size)))
        except (struct.error, ValueError):
            return None
    ends = (entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__")
    return 8 + length + max(ends, default=0)
