"""An optimizer's state over many processes, on disk and back under any other layout.

A folder has one file of pieces for each process that wrote it, in the format of
`stored_tensors.py`, named `<parameter>/<key>`: torch's own HuggingFaceStorageWriter would do, but
takes twice the time, and its reader learns a tensor's shape from where its last piece ends.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, Replicate

from automodel_core.train.sharded.pieces import Piece
from automodel_core.train.sharded.saving import staged
from automodel_core.train.sharded.stored_tensors import DTYPES, StoredTensors, write_pieces


def staged_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, copy: bool = True
) -> list[Piece]:
    """What this process writes of the optimizer's state, staged as in `staged`.

    Replicas are written once. State that is a plain number becomes a float64 scalar.
    """
    names = parameter_names(model)
    state = {
        f"{names[parameter]}/{key}": value
        if torch.is_tensor(value)
        else torch.tensor(value, dtype=torch.float64)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }
    return staged(dict(sorted(state.items())), copy=copy)


def write_optimizer(folder: Path, pieces: list[Piece], rank: int, ranks: int) -> None:
    """Write this process's file; the others write theirs beside it, whenever they do."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pieces(folder / f"{rank + 1:05}-of-{ranks:05}.safetensors", pieces)


def optimizer_files(folder: Path) -> list[Path]:
    """What `write_optimizer` wrote from all processes, or other safetensors files.

    Raises:
        ValueError: One is missing.
    """
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        number, of, count = path.stem.partition("-of-")
        if of and number.isdecimal() and count.isdecimal() and int(count) != len(files):
            raise ValueError(f"{folder} has {len(files)} of {int(count)} files")
    return files


def read_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path) -> None:
    """Put back what was saved, each process its part, however it was sharded when it was saved.

    Processes don't talk to each other. `load_state_dict` casts what it takes to the dtype of the
    parameter, which isn't always the state's own.

    Args:
        model: Sharded as it is trained; its parameters are in the optimizer.

    Raises:
        ValueError: A file or a part of a tensor is missing, or a file lacks its description.
        safetensors.SafetensorError: A file is damaged.
        OSError: A file can't be read.
    """
    names = parameter_names(model)
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = {names[parameter]: parameter for parameter in ordered}
    state: dict[str, dict[str, torch.Tensor]] = {}
    with StoredTensors(optimizer_files(folder)) as stored:
        for name, header in stored.headers.items():
            owner, _, key = name.rpartition("/")
            if owner in parameters:
                dtype = DTYPES[header.dtype]
                target = _empty_state(parameters[owner], header.shape, dtype)
                stored.fill(name, target)
                state.setdefault(owner, {})[key] = target
    plain = optimizer.state_dict()
    plain["state"] = {
        index: state[names[p]] for index, p in enumerate(ordered) if names[p] in state
    }
    optimizer.load_state_dict(plain)
    for parameter, loaded in optimizer.state.items():
        for key, saved in state[names[parameter]].items():
            if torch.is_tensor(loaded[key]) and loaded[key].dtype != saved.dtype:
                loaded[key] = saved.to(loaded[key].device)


def parameter_names(model: torch.nn.Module) -> dict[torch.nn.Parameter, str]:
    """Each parameter's name in the state dict, which wrappers don't change; of tied ones one."""
    named = reversed(model.state_dict(keep_vars=True).items())
    return {each: name for name, each in named if isinstance(each, torch.nn.Parameter)}


def _empty_state(
    parameter: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Sharded as the parameter if it has its shape, a scalar of the CPU, or else whole."""
    if not shape:
        return torch.empty((), dtype=dtype)
    if shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    whole = torch.empty(shape, dtype=dtype, device=parameter.device)
    if isinstance(parameter, DTensor):
        everywhere = [Replicate()] * parameter.device_mesh.ndim
        return DTensor.from_local(whole, parameter.device_mesh, everywhere, run_check=False)
    return whole
