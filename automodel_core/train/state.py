"""What a checkpoint holds: the model as transformers opens it, and what exact resumption needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.train.checkpoint import damaged


def staged(tensor: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """A tensor in the host's memory, as a file takes it.

    Args:
        copy: Whether the run changes it before it is written; if not, the host's own will do.
    """
    return tensor.detach().to("cpu", copy=copy).contiguous()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, copy: bool = True
) -> dict[str, torch.Tensor]:
    """The optimizer's state, staged and named by parameter; the configuration has the rest.

    State that is a plain number (older optimizers' step counts) becomes a float64 scalar.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": staged(torch.as_tensor(value), copy=copy)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` took, through the optimizer's own loading.

    That casts what it loads to the dtype of the parameter, which isn't always the state's own.
    """
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    plain = optimizer.state_dict()
    plain["state"] = {index: state[name] for index, name in enumerate(ordered) if name in state}
    optimizer.load_state_dict(plain)
    for parameter, loaded in optimizer.state.items():
        for key, saved in state[names[parameter]].items():
            if torch.is_tensor(loaded[key]) and loaded[key].dtype != saved.dtype:
                loaded[key] = saved.to(loaded[key].device)


def staged_weights(model: PreTrainedModel, *, copy: bool = True) -> dict[str, torch.Tensor]:
    """The weights, staged; tied weights stay one tensor."""
    made: dict[int, torch.Tensor] = {}
    return {
        name: made.setdefault(tensor.data_ptr(), staged(tensor, copy=copy))
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
    """Tensors in safetensors, the rest as JSON: nothing that reading would have to unpickle.

    torch.distributed.checkpoint can write safetensors too, in five times the time.
    """
    (folder / "optimizer").mkdir(parents=True)
    if tensors:
        save_file(tensors, folder / "optimizer" / "rank_0.safetensors")
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
    """All tensors of the safetensors files in a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
