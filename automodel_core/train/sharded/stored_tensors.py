"""Folders of safetensors files, whole tensors or pieces of them, read by slices.

A file of pieces says in its header what they are pieces of, as JSON under `pieces`: for each tensor
in the file the `name` and `shape` of the whole, and the `offset` at which the piece begins. Any
other safetensors file holds whole tensors. Files are mapped, not read: a slice costs what it holds,
and its pages belong to the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import torch
from safetensors import safe_open

from automodel_core.train.sharded.pieces import Piece, copy_overlap, local_pieces

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@attrs.frozen
class Described:
    """A tensor's header: `dtype` as safetensors calls it, `shape`."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Described:
        return cls(NAMES[tensor.dtype], tuple(tensor.shape))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize


class StoredTensors:
    """The tensors of some safetensors files; a context manager that keeps them open.

    Attributes:
        headers: What each is, by its name.

    Raises:
        safetensors.SafetensorError: A file isn't one.
        ValueError: Its pieces aren't described.
        OSError: It can't be opened.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.headers: dict[str, Described] = {}
        self._places: dict[str, list[tuple[Any, str, tuple[int, ...], tuple[int, ...]]]] = {}
        with contextlib.ExitStack() as stack:
            for path in files:
                self._note(stack.enter_context(safe_open(path, framework="pt")), path)
            self._open = stack.pop_all()

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._places.clear()
        self._open.close()

    def _note(self, file: Any, path: Path) -> None:
        described = json.loads((file.metadata() or {}).get("pieces", "{}"))
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            part = file.get_slice(key)
            size, dtype = tuple(part.get_shape()), part.get_dtype()
            whole = described.get(key, {"name": key, "shape": size, "offset": (0,) * len(size)})
            try:
                header = Described(dtype, tuple(whole["shape"]))
                name, offset = whole["name"], tuple(whole["offset"])
            except (TypeError, KeyError):
                raise ValueError(f"{path} doesn't describe {key}") from None
            if self.headers.setdefault(name, header) != header:
                raise ValueError(f"{path} has another {name} than the files beside it")
            self._places.setdefault(name, []).append((file, key, offset, size))

    def pieces(self, name: str) -> Iterator[Piece]:
        """What is stored of a tensor; the values are read when they are used."""
        for file, key, offset, size in self._places[name]:
            values = file.get_tensor(key)
            yield Piece(name, self.headers[name].shape, offset, values.view(size))

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Read what this process holds of `target`, a DTensor or a whole tensor, in place.

        Raises:
            ValueError: The files don't have all of it.
        """
        if self.headers[name].shape != tuple(target.shape):
            raise ValueError(f"{name} is {self.headers[name].shape}, not {tuple(target.shape)}")
        wanted = local_pieces(name, target)
        needed = sum(each.values.numel() for each in wanted)
        seen = set()
        for stored in self.pieces(name):
            # Replicas may have been written twice.
            box = (stored.offset, stored.values.shape)
            if box not in seen:
                seen.add(box)
                needed -= sum(copy_overlap(stored, each) for each in wanted)
        if needed:
            raise ValueError(f"a part of {name} is missing")

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, as a copy or as a view of its file."""
        first = next(self.pieces(name))
        if first.values.shape == first.shape:
            return first.values
        whole = torch.empty(first.shape, dtype=first.values.dtype)
        self.fill(name, whole)
        return whole


def write_pieces(path: Path, pieces: list[Piece]) -> None:
    """A file of pieces; their values are on the CPU."""
    pieces = sorted(pieces, key=lambda piece: -piece.values.element_size())
    keys = [f"{index}:{piece.name}" for index, piece in enumerate(pieces)]
    described = {
        key: {"name": piece.name, "shape": piece.shape, "offset": piece.offset}
        for key, piece in zip(keys, pieces, strict=True)
    }
    write_safetensors(
        path,
        {k: Described.of(p.values) for k, p in zip(keys, pieces, strict=True)},
        (piece.values for piece in pieces),
        {"format": "pt", "pieces": json.dumps(described)},
    )


def write_safetensors(
    path: Path,
    headers: dict[str, Described],
    tensors: Iterable[torch.Tensor],
    metadata: dict[str, str],
) -> None:
    """Tensors into one file, one after another, each taken from the iterable when its turn comes.

    The format: https://huggingface.co/docs/safetensors, a length of 8 bytes, a header of JSON,
    filled up with spaces to a multiple of 8 bytes, and the values.

    Args:
        headers: What the iterable will yield, in its order: larger elements first, so that each
            tensor begins at a multiple of its element's size, as readers want.
        tensors: On the CPU.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, each in headers.items():
        begin, end = end, end + each.nbytes
        header[name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(len(text).to_bytes(8, "little") + text))
        for tensor in tensors:
            _write_all(file.fileno(), memory_of(tensor))


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU; a copy only if it isn't contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _write_all(descriptor: int, data: memoryview) -> None:
    # One call writes at most 2 GiB on Linux.
    while data:
        data = data[os.write(descriptor, data) :]
