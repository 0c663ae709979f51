"""Saving and restoring a run.

A checkpoint is one directory, `epoch_E_step_S/`, that appears complete or not at all:

    model/                 opens in plain transformers: weights, config, tokenizer, chat template
    training/optimizer/    the optimizer's tensors, named `<parameter>/<key>`, in safetensors
    training/state.json    step, cursor, counts, random state
    config.yaml            the effective configuration
    manifest.json          versions, sizes and hashes of every file

Nothing in it is a pickle (unless `model_save_format: torch_save` asks for one, for the weights
alone), and reading it never unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.errors import UserError
from automodel_core.train.run_folder import point_latest_to

FORMAT = 1


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """The optimizer's state, named by parameter. Hyperparameters are the configuration's business.

    State that is a plain number (older optimizers' step counts) becomes a float64 scalar.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
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


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    save_format: str,
) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` opens."""
    model.save_pretrained(folder)
    if save_format == "torch_save":
        for weights in folder.glob("model*.safetensors*"):
            weights.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer.save_pretrained(folder)


def write_checkpoint(target: Path, write: Callable[[Path], None], manifest: dict[str, Any]) -> None:
    """Write aside, flush, verify, publish with one rename, and move `latest`.

    Args:
        target: The directory to publish.
        write: Fills the directory it is given.
        manifest: What to record beside sizes and hashes.

    Raises:
        UserError: The disk is full or not writable; older checkpoints are untouched.
    """
    aside = target.with_name(f".saving-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write(aside)
        seal(aside, manifest)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)
        flush(target.parent)
        point_latest_to(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"The checkpoint {target} could not be written: {error.strerror or error}. "
            "Earlier checkpoints are unharmed.",
            fix="free some space, then run the same command again to resume from the last one",
            path=("checkpoint", "checkpoint_dir"),
        ) from error


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Flush every file to the disk and write the manifest of what is there."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        flush(path)
        files[str(path.relative_to(folder))] = {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
    versions = {name: version(name) for name in ("automodel-core", "torch", "transformers")}
    content = {"format": FORMAT, "versions": versions, **manifest, "files": files}
    path = folder / "manifest.json"
    path.write_text(json.dumps(content, indent=1))
    flush(path)


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest, after checking that every file it lists is whole.

    Raises:
        UserError: Not a checkpoint, or a damaged one; the file is named.
    """
    path = checkpoint / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{checkpoint} is not a checkpoint of automodel: {path.name} is missing or unreadable.",
            fix="pass --resume the path of an epoch_E_step_S folder, or --fresh",
        ) from None
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            raise damaged(checkpoint, name, "is missing")
        if file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise damaged(checkpoint, name, "has changed since it was saved")
    return manifest


def damaged(checkpoint: Path, name: str, how: str) -> UserError:
    return UserError(
        f"The checkpoint {checkpoint} is damaged: {name} {how}.",
        fix="resume from an older one with --resume PATH",
    )


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


def load_training_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_training_state` wrote."""
    tensors: dict[str, torch.Tensor] = {}
    if (folder / "optimizer").is_dir():
        reader = HuggingFaceStorageReader(str(folder / "optimizer"))
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
        }
        with quiet_single_process():
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors, json.loads((folder / "state.json").read_text())


@contextlib.contextmanager
def quiet_single_process() -> Iterator[None]:
    """PyTorch warns of every save in one process, which is what we mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
