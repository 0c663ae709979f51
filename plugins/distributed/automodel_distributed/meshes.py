"""The parts of the engine's mesh that parameters are spread over."""

from __future__ import annotations

import warnings

from torch.distributed.device_mesh import DeviceMesh


def shards_of(mesh: DeviceMesh) -> DeviceMesh:
    """The ranks that share the parameters of one copy of the model, one dim."""
    return _sliced(mesh, _shard_dim(mesh))


def copies_and_shards_of(mesh: DeviceMesh) -> DeviceMesh:
    """The copies, and the ranks that share each of them: two dims, or one if there is one copy."""
    if mesh["dp_replicate"].size() == 1:
        return shards_of(mesh)
    return _sliced(mesh, ("dp_replicate", _shard_dim(mesh)))


def _shard_dim(mesh: DeviceMesh) -> str:
    """A dim of the mesh's own where there is one."""
    return "dp_shard" if mesh["cp"].size() == 1 else "dp_shard_cp"


def _sliced(mesh: DeviceMesh, dims: str | tuple[str, ...]) -> DeviceMesh:
    with warnings.catch_warnings():  # no public way of slicing two dims replaces it yet
        warnings.filterwarnings("ignore", message="Slicing a flattened dim from root mesh")
        return mesh[dims]
