"""What a checkpoint holds: the model as transformers opens it, and what exact resumption needs."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.train.checkpoint import damaged


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """A copy of the optimizer's state, named by parameter; the configuration has the rest.

    State that is a plain number (older optimizers' step counts) becomes a float64 scalar.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        .detach()
        .to("cpu", copy=True)
        .contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` took, through the optimizer's own loading."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    plain = optimizer.state_dict()
    plain["state"] = {index: state[name] for index, name in enumerate(ordered) if name in state}
    optimizer.load_state_dict(plain)


def staged_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights in the host's memory; tied weights stay one tensor."""
    copies: dict[int, torch.Tensor] = {}
    return {
        name: copies.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", copy=True))
        for name, tensor in model.state_dict().items()
    }


def save_model(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    save_format: str,
) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` opens."""
    model.save_pretrained(folder, state_dict=weights)
    if save_format == "torch_save":
        for stored in folder.glob("model*.safetensors*"):
            stored.unlink()
        # Through a file of ours, whose OSError says what went wrong; torch's own writer doesn't.
        with (folder / "pytorch_model.bin").open("wb") as file:
            torch.save(weights, file)
    tokenizer.save_pretrained(folder)


def save_training_state(
    folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    """Tensors through torch.distributed.checkpoint in safetensors files, the rest as JSON.

    Its own file format is not used: reading it back would unpickle `.metadata`.
    """
    folder.mkdir()
    if tensors:
        writer = HuggingFaceStorageWriter(str(folder / "optimizer"), save_distributed=True)
        with quiet_single_process():
            dcp.save(tensors, storage_writer=writer, no_dist=True)
    (folder / "state.json").write_text(json.dumps(state))


def load_training_state(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_training_state` wrote into a checkpoint's `training` folder.

    Raises:
        UserError: A file isn't what its name says.
    """
    try:
        return (
            read_tensors(checkpoint / "training" / "optimizer"),
            json.loads((checkpoint / "training" / "state.json").read_text()),
        )
    except SafetensorError as error:
        raise damaged(checkpoint, "training/optimizer/", f"can't be read ({error})") from None
    except (OSError, ValueError, RecursionError):
        raise damaged(checkpoint, "training/state.json", "can't be read") from None


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder that torch.distributed.checkpoint wrote as safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    if folder.is_dir():
        reader = HuggingFaceStorageReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
        }
        with quiet_single_process():
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@contextlib.contextmanager
def quiet_single_process() -> Iterator[None]:
    """PyTorch warns of every save in one process, which is what we mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
