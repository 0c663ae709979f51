"""`automodel export`: a whole model, in another dtype or other shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from automodel_core.errors import UserError
from automodel_core.export.companions import copy_companions
from automodel_core.export.finding import Saved
from automodel_core.export.stored import has_safetensors, open_stored
from automodel_core.export.writing import ShardWriter, published

Say = Callable[[str], None]


def export_model(
    saved: Saved, out: Path, dtype: torch.dtype | None, shard_bytes: int, say: Say
) -> None:
    """Write a model's folder again, one tensor at a time.

    Args:
        saved: A whole model.
        out: The folder to make.
        dtype: What floating-point weights become; None keeps each one's own.
        shard_bytes: See `ShardWriter`.
        say: Prints a line.

    Raises:
        UserError: It is no whole model in safetensors, or the folder can't be written.
    """
    if saved.is_adapter:
        raise UserError(
            f"{saved.title} holds an adapter, not a whole model.",
            fix=f"make one of it first: automodel merge {saved.title}",
        )
    if not has_safetensors(saved.folder):
        raise UserError(
            f"{saved.folder} has no safetensors, from which weights are read one at a time.",
            fix="train with checkpoint.model_save_format: safetensors",
        )
    stored = open_stored(saved.folder)
    with published(out, stored.bytes_on_disk()) as aside:
        writer = ShardWriter(aside, shard_bytes)
        for name in stored.files:
            tensor = stored.read(name)
            writer.add(name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        writer.finish()
        write_config(saved.folder / "config.json", aside / "config.json", dtype)
        copy_companions(aside, saved.folder)
    say(f"Exported {len(stored.files)} tensors to {out}.")


def write_config(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Copy a config.json; every `dtype` in it, also of a part of the model, is the new one."""
    if dtype is None:
        shutil.copyfile(source, target)
        return
    name = str(dtype).removeprefix("torch.")
    config = json.loads(source.read_text(encoding="utf-8"))
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = name
    if "torch_dtype" not in config:
        config["dtype"] = name
    target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
