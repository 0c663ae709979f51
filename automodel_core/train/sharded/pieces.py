"""Which part of a sharded tensor this process holds, and which part it writes.

A tensor under DTensor is cut along some dimensions by the sizes of a mesh, once or (FSDP2 over
tensor parallelism) twice. What one process holds of it is a box of the whole, or several where a
strided shard doesn't come out contiguous. Everything here follows from a tensor's own placements:
processes needn't talk to each other to agree on who holds and who writes what.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from math import prod

import attrs
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

# Rows of the whole tensor, or any of its dimension's: first and how many.
Run = tuple[int, int]


@attrs.frozen(eq=False)
class Piece:
    """A box of a tensor.

    Attributes:
        name: Of the whole tensor.
        shape: Of the whole tensor.
        offset: Where the box begins, for each dimension.
        values: What is in it.
    """

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: torch.Tensor


def local_pieces(name: str, tensor: torch.Tensor) -> list[Piece]:
    """What this process holds of a tensor, as views of it; the whole if it isn't sharded.

    Raises:
        ValueError: It holds a sum that is still to be reduced.
        RuntimeError: Its placements don't describe what it holds.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return [Piece(name, tuple(tensor.shape), (0,) * tensor.ndim, tensor)]
    local = tensor.to_local()
    held = [_held_runs(tensor, dim) for dim in range(tensor.ndim)]
    if local.shape != (expected := tuple(sum(n for _, n in runs) for runs in held)):
        raise RuntimeError(
            f"{name}: {tuple(local.shape)} is held where {tensor.placements} of "
            f"{tuple(tensor.shape)} on {tuple(tensor.device_mesh.shape)} means {expected}."
        )
    return [
        Piece(name, tuple(tensor.shape), tuple(first for _, (first, _) in box), values)
        for box in itertools.product(*map(list, map(_with_local_start, held)))
        if (values := _narrowed(local, box)).numel()
    ]


def owned_pieces(tensors: Mapping[str, torch.Tensor]) -> list[Piece]:
    """What this process writes of tensors that all processes hold together.

    Of the replicas of a part, one is written; they share the bytes evenly. The calling processes
    must pass the same names in the same order. Where tensors are sharded on a mesh that doesn't
    span all processes, each of such meshes writes a copy, which does no harm.
    """
    loads: dict[int, list[int]] = {}
    pieces: list[Piece] = []
    for name, tensor in tensors.items():
        index, count = _replica(tensor)
        load = loads.setdefault(count, [0] * count)
        chosen = load.index(min(load))
        load[chosen] += tensor.numel() * tensor.element_size()
        if chosen == index:
            pieces += local_pieces(name, tensor)
    return pieces


def copy_overlap(source: Piece, target: Piece) -> int:
    """Copy what `source` has of `target`'s box, cast to its type; returns how many elements."""
    begins = [max(a, b) for a, b in zip(source.offset, target.offset, strict=True)]
    ends = [min(a, b) for a, b in zip(_end(source), _end(target), strict=True)]
    sizes = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
    if 0 in sizes:
        return 0
    _part(target, begins, sizes).copy_(_part(source, begins, sizes))
    return prod(sizes)


def _part(piece: Piece, begins: Iterable[int], sizes: Iterable[int]) -> torch.Tensor:
    """A box of the whole tensor that lies in the piece, as a view of its values."""
    part = piece.values
    for dim, (begin, size, first) in enumerate(zip(begins, sizes, piece.offset, strict=True)):
        part = part.narrow(dim, begin - first, size)
    return part


def _end(piece: Piece) -> Iterator[int]:
    return (first + size for first, size in zip(piece.offset, piece.values.shape, strict=True))


def _replica(tensor: torch.Tensor) -> tuple[int, int]:
    """Which of how many holders of the same part this process is."""
    if not isinstance(tensor, DTensor):
        return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index, count = 0, 1
    for place, size, placement in _layout(tensor):
        if isinstance(placement, Replicate):
            index, count = index * size + place, count * size
    return index, count


def _layout(tensor: DTensor) -> list[tuple[int, int, object]]:
    """For each dimension of the mesh: this process's place, how many there are, the placement."""
    mesh = tensor.device_mesh
    return list(zip(mesh.get_coordinate(), mesh.shape, tensor.placements, strict=True))


def _held_runs(tensor: DTensor, dim: int) -> list[Run]:
    """The parts of a dimension that this process holds, in the order in which it holds them."""
    runs: list[Run] = [(0, tensor.shape[dim])]
    for place, size, placement in _layout(tensor):
        if isinstance(placement, _StridedShard):
            if placement.dim == dim:
                groups = (_share(runs, placement.split_factor, i)
                          for i in range(placement.split_factor))  # fmt: skip
                runs = [run for group in groups for run in _share(group, size, place)]
        elif isinstance(placement, Shard):
            if placement.dim == dim:
                runs = _share(runs, size, place)
        elif not isinstance(placement, Replicate):
            raise ValueError(f"A tensor placed {placement} isn't stored: reduce it first.")
    return _joined(runs)


def _share(runs: list[Run], count: int, place: int) -> list[Run]:
    """What `torch.chunk` gives the process at `place` of `count`; empty past the last chunk."""
    total = sum(length for _, length in runs)
    chunk = -(-total // count)
    begin, end = min(place * chunk, total), min((place + 1) * chunk, total)
    share, before = [], 0
    for first, length in runs:
        low, high = max(begin - before, 0), min(end - before, length)
        if low < high:
            share.append((first + low, high - low))
        before += length
    return share


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that continue each other made one."""
    joined: list[Run] = []
    for first, length in runs:
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((first, length))
    return joined


def _with_local_start(runs: list[Run]) -> Iterator[tuple[int, Run]]:
    start = 0
    for first, length in runs:
        yield start, (first, length)
        start += length


def _narrowed(local: torch.Tensor, box: tuple[tuple[int, Run], ...]) -> torch.Tensor:
    for dim, (start, (_, length)) in enumerate(box):
        local = local.narrow(dim, start, length)
    return local
