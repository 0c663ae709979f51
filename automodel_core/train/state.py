"""What a checkpoint holds: the model as transformers opens it, and what exact resumption needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.train.checkpoint import damaged
from automodel_core.train.sharded.optimizer import read_optimizer, write_optimizer
from automodel_core.train.sharded.pieces import Piece
from automodel_core.train.world import World


def whole(tensor: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """All of a tensor in the host's memory; all ranks that hold a part must ask for it.

    Args:
        copy: Whether the run changes it before it is written; if not, the host's own will do.
    """
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.to("cpu", copy=copy).contiguous()


def staged_weights(
    model: PreTrainedModel, *, copy: bool = True, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The whole weights, one after another; tied weights stay one tensor.

    Args:
        copy: As for `whole`.
        keep: Whether this rank wants them, or only takes part in putting them together.
    """
    made: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in made:
            made[id(tensor)] = whole(tensor, copy=copy)
        weights[name] = made[id(tensor)]
        if not keep:
            made[id(tensor)] = torch.empty(0)
    return weights if keep else {}


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
    folder: Path,
    optimizer: list[Piece],
    state: dict[str, Any] | None,
    randomness: dict[str, Any] | None,
    world: World,
) -> None:
    """This rank's part of what exact resumption needs: tensors in safetensors, the rest as JSON.

    Args:
        folder: The same for all ranks.
        optimizer: What this rank writes of the optimizer's state.
        state: What all ranks share; None unless this rank writes it.
        randomness: Of this rank's samples; None unless this rank writes it.
        world: The ranks.
    """
    write_optimizer(folder / "optimizer", optimizer, world.rank, world.size)
    if randomness is not None:
        (folder / f"rng_{world.data_rank}.json").write_text(json.dumps(randomness))
    if state is not None:
        (folder / "state.json").write_text(json.dumps(state))


def load_training_state(checkpoint: Path) -> dict[str, Any]:
    """What all ranks share.

    Raises:
        UserError: A file isn't what its name says.
    """
    return read_json(checkpoint, "training/state.json")


def load_randomness(checkpoint: Path, world: World) -> dict[str, Any]:
    """The random state of this rank's samples."""
    return read_json(checkpoint, f"training/rng_{world.data_rank}.json")


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, checkpoint: Path
) -> None:
    """The optimizer's state, this rank's part of it.

    Raises:
        UserError: A file isn't what its name says.
    """
    try:
        read_optimizer(optimizer, model, checkpoint / "training" / "optimizer")
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(checkpoint, "training/optimizer/", f"can't be read ({error})") from None


def read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / name).read_text())
    except (OSError, ValueError, RecursionError):
        raise damaged(checkpoint, name, "can't be read") from None
