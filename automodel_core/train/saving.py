"""When a run is saved, what of it, and how it is put back."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from automodel_core.errors import SavedAfterSignal
from automodel_core.train.checkpoint import MANIFEST, amend_manifest
from automodel_core.train.run import Run
from automodel_core.train.state import (
    load_optimizer_tensors,
    optimizer_tensors,
    save_model,
    save_training_state,
    staged,
    staged_weights,
)
from automodel_core.train.validating import no_longer_improving


def save(run: Run) -> Path:
    """Write a checkpoint of the state after `run.step`; what is written later is copied first."""
    started = time.perf_counter()
    target = checkpoint_path(run)
    write_model = staged_model(run)
    tensors = optimizer_tensors(run.optimizer, run.model, copy=run.writer.background)
    state = training_state(run)

    def fill(folder: Path) -> None:
        with ThreadPoolExecutor(1) as beside:
            training = beside.submit(save_training_state, folder / "training", tensors, state)
            write_model(folder / "model")
            training.result()
        (folder / "config.yaml").write_text(run.effective_yaml)
        for log in (run.training_log, run.validation_log):
            log.flush()

    run.writer.write(target, fill, {**run.manifest, "metrics": metrics_at(run)})
    run.seconds["save"] += time.perf_counter() - started
    return target


def staged_model(run: Run) -> Callable[[Path], None]:
    """Stage what the model folder will hold; returns the function that writes it."""
    model, adapter, name = run.model, run.adapter, run.manifest["model"]
    copy = run.writer.background
    if adapter is None:
        weights = staged_weights(model, copy=copy)
        save_format = run.config.checkpoint.model_save_format
        return lambda folder: save_model(folder, model, weights, run.tokenizer, save_format)
    run.guards.adapter(adapter, model)
    state = {key: staged(each, copy=copy) for key, each in adapter.state(model).items()}

    def write(folder: Path) -> None:
        adapter.save(model, folder, state, name, run.manifest["revision"])
        run.tokenizer.save_pretrained(folder)

    return write


def metrics_at(run: Run) -> dict[str, float]:
    """The validation metrics of exactly this step, if there are any."""
    records = run.validation_log.read()
    return records[-1] if records and records[-1]["step"] == run.step else {}


def amend_metrics(run: Run) -> None:
    """Give the checkpoint of this step the validation that a signal kept from it."""
    checkpoint = checkpoint_path(run)
    if (checkpoint / MANIFEST).exists():
        amend_manifest(checkpoint, {"metrics": metrics_at(run)})
        run.writer.published(checkpoint)


def checkpoint_path(run: Run) -> Path:
    """Where the state after `run.step` is published."""
    return run.folder / f"epoch_{run.data.last_epoch}_step_{run.step}"


def training_state(run: Run) -> dict[str, Any]:
    """What exact resumption needs besides the tensors."""
    return {
        "step": run.step,
        "label_tokens": run.label_tokens,
        "batch": run.data.layout.group,
        "ranks": run.data.layout.ranks,
        "guards": run.guards.state_dict(),
        "data": run.data.state_dict(),
        "rng": run.rng.state_dict(),
        "scaler": run.scaler.state_dict(),
        "seconds": run.seconds,
    }


def restore(run: Run, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Stand where the checkpoint stood; later lines of the logs are taken back."""
    load_optimizer_tensors(run.optimizer, run.model, tensors)
    run.step, run.label_tokens, run.seconds = state["step"], state["label_tokens"], state["seconds"]
    run.data.load_state_dict(state["data"])
    run.scaler.load_state_dict(state["scaler"])
    run.rng.load_state_dict(state["rng"])
    run.guards.load_state_dict(state["guards"])
    run.guards.batch(run.data.layout, before=state["batch"])
    forget_later_lines(run)
    run.ended_early = no_longer_improving(run)


def saved_after_signal(run: Run, signal_name: str | None) -> SavedAfterSignal:
    """Save if the YAML saves at all, and say how to go on."""
    if not run.config.checkpoint.enabled:
        return SavedAfterSignal(
            f"Stopped by {signal_name} after step {run.step}; nothing is saved "
            "because checkpoint.enabled is false."
        )
    target = save(run)
    run.writer.settle()
    return SavedAfterSignal(
        f"Stopped by {signal_name} after step {run.step} and saved {target}.\n"
        "Run the same command again to go on from there."
    )


def forget_later_lines(run: Run) -> None:
    """Take back what an earlier attempt logged after this step: it is done again."""
    run.training_log.forget_after(run.step)
    run.validation_log.forget_after(run.step)
