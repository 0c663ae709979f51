"""When a run is saved, what of it, and how it is put back."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from automodel_core.errors import SavedAfterSignal
from automodel_core.train.checkpoint import MANIFEST, amend_manifest
from automodel_core.train.run import Run
from automodel_core.train.sharded.optimizer import staged_optimizer
from automodel_core.train.sharded.saving import stage_model
from automodel_core.train.state import (
    load_optimizer,
    load_randomness,
    load_training_state,
    save_model,
    save_training_state,
    staged_weights,
    whole,
)
from automodel_core.train.validating import no_longer_improving


def save(run: Run) -> Path:
    """Write a checkpoint of the state after `run.step`; what is written later is copied first.

    All ranks call it at the same step.
    """
    started = time.perf_counter()
    target, world, together = checkpoint_path(run), run.world, run.writer.together
    write_model = staged_model(run)
    optimizer = staged_optimizer(run.optimizer, run.model, copy=run.writer.background)
    state = training_state(run) if world.is_main else None
    randomness = run.rng.state_dict() if world.speaks_for_its_data else None

    def fill(folder: Path) -> None:
        with ThreadPoolExecutor(1) as beside:
            training = beside.submit(
                save_training_state, folder / "training", optimizer, state, randomness, world
            )
            write_model(folder / "model")
            together.do(training.result)
        if world.is_main:
            (folder / "config.yaml").write_text(run.effective_yaml)
            for log in (run.training_log, run.validation_log):
                log.flush()

    run.writer.write(target, fill, {**run.manifest, "metrics": metrics_at(run)})
    run.seconds["save"] += time.perf_counter() - started
    return target


def staged_model(run: Run) -> Callable[[Path], None]:
    """Stage what the model folder will hold; returns the function that writes it."""
    if run.adapter is not None:
        return staged_adapter(run)
    model, copy = run.model, run.writer.background
    tokenizer = run.processor or run.tokenizer  # a processor saves its tokenizer too
    save_format, together = run.config.checkpoint.model_save_format, run.writer.together
    if run.world.alone or not run.sharded_saves or save_format == "torch_save":
        weights = staged_weights(model, copy=copy, keep=run.world.is_main)
        return lambda folder: together.do(
            lambda: run.world.is_main and save_model(folder, model, weights, tokenizer, save_format)
        )
    staged = stage_model(model, together, copy=copy)
    return lambda folder: staged.write(folder, model, tokenizer, together)


def staged_adapter(run: Run) -> Callable[[Path], None]:
    """Stage the adapter, which is so small that every rank holds all of it."""
    model, adapter, name = run.model, run.adapter, run.manifest["model"]
    run.guards.adapter(adapter, model)
    state = {
        key: whole(each, copy=run.writer.background) for key, each in adapter.state(model).items()
    }

    def write(folder: Path) -> None:
        if run.world.is_main:
            adapter.save(model, folder, state, name, run.manifest["revision"])
            (run.processor or run.tokenizer).save_pretrained(folder)

    return lambda folder: run.writer.together.do(lambda: write(folder))


def metrics_at(run: Run) -> dict[str, float]:
    """The validation metrics of exactly this step, if there are any."""
    last = run.validations[-1] if run.validations else {"step": None}
    return last if last["step"] == run.step else {}


def amend_metrics(run: Run) -> None:
    """Give the checkpoint of this step the validation that a signal kept from it."""
    checkpoint = checkpoint_path(run)
    if run.world.is_main and (checkpoint / MANIFEST).exists():
        amend_manifest(checkpoint, {"metrics": metrics_at(run)})
        run.writer.published(checkpoint)


def checkpoint_path(run: Run) -> Path:
    """Where the state after `run.step` is published."""
    return run.folder / f"epoch_{run.data.cursor.last_epoch}_step_{run.step}"


def training_state(run: Run) -> dict[str, Any]:
    """What exact resumption needs besides the tensors."""
    return {
        "step": run.step,
        "label_tokens": run.label_tokens,
        "batch": run.data.layout.group,
        "ranks": run.data.layout.ranks,
        "guards": run.guards.state_dict(),
        "data": run.data.state_dict(),
        "scaler": run.scaler.state_dict(),
        "seconds": run.seconds,
    }


def restore(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Stand where the checkpoint stood; later lines of the logs are taken back.

    The optimizer's state is dealt out again however many ranks there were. Random state goes on
    where every rank finds its own; with another number of ranks new streams begin.

    Returns:
        What all ranks share of the checkpoint's state.
    """
    state = load_training_state(checkpoint)
    load_optimizer(run.optimizer, run.model, checkpoint)
    run.step, run.label_tokens, run.seconds = state["step"], state["label_tokens"], state["seconds"]
    run.data.load_state_dict(state["data"])
    run.scaler.load_state_dict(state["scaler"])
    if state["ranks"] == run.world.data_ranks:
        run.rng.load_state_dict(load_randomness(checkpoint, run.world))
    run.guards.load_state_dict(state["guards"])
    run.guards.batch(run.data.layout, before=state["batch"])
    forget_later_lines(run)
    run.ended_early = no_longer_improving(run)
    return state


def saved_after_signal(run: Run, signal_name: str | None) -> SavedAfterSignal:
    """Save if the YAML saves at all, and say how to go on."""
    signal_name = signal_name or "a signal to another rank"
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
    if run.world.is_main:
        run.training_log.forget_after(run.step)
        run.validation_log.forget_after(run.step)
    run.validations = run.world.from_main(run.validation_log.read())
