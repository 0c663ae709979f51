"""Warm-up and timed steps of a configuration, without saving anything."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch

from automodel_core.bench.flops import CONVENTION, StepFlops, peak_of
from automodel_core.config.schema import LRScheduler, RunConfig
from automodel_core.data_report.documents import rows_of
from automodel_core.protocols import Batch
from automodel_core.train.build import load
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.loop import optimizer_step
from automodel_core.train.metrics import peak_memory_gib
from automodel_core.train.prepare import Prepared, prepare
from automodel_core.train.readings import Reading
from automodel_core.train.run import Run
from automodel_core.train.signals import StopRequest

PERCENTILES = (10, 50, 90, 99)


@attrs.define
class Rows:
    """What went into the steps, counted on the CPU.

    Attributes:
        steps: For each step, the lengths of its documents.
        slots: For each step, the tokens of its rows, pads included.
        images: For each step.
    """

    steps: list[list[int]] = attrs.field(factory=list)
    slots: list[int] = attrs.field(factory=list)
    images: list[int] = attrs.field(factory=list)

    def add(self, batches: list[Batch]) -> None:
        """A step's micro-batches."""
        rows = [row for batch in batches for row in rows_of(batch)]
        self.steps.append([len(each.ids) for row in rows for each in row.documents])
        self.slots.append(sum(batch["input_ids"].numel() for batch in batches))
        self.images.append(sum(len(batch.get("pixel_values", ())) for batch in batches))


def bench(
    config: RunConfig,
    context: RunContext,
    *,
    warmup: int,
    steps: int,
    profile_to: Path | None = None,
) -> dict[str, Any]:
    """Train `warmup` steps, then `steps` that are timed.

    Args:
        config: A checked configuration; what it says of saving, validation and loggers is left out.
        context: As for a run.
        warmup: Steps before the timed ones; the first compiles and allocates.
        steps: Timed steps.
        profile_to: A folder for a trace of the last steps, and a snapshot of the GPU's memory.

    Returns:
        The figures of this rank; rates are of all ranks together.
    """
    with (
        ready(config, context) as (run, phases),
        profiled(profile_to, run, warmup + steps) as each_step,
    ):
        rows, readings = counted(run), []
        mark = time.perf_counter()
        for number in range(warmup + steps):
            readings.append(optimizer_step(run, StopRequest()))
            if not number:
                readings[0].clock.seconds()  # waits for the device
                phases["first step"] = time.perf_counter() - mark
            each_step()
        return figures(run, readings, rows, warmup, phases)


@contextmanager
def ready(config: RunConfig, context: RunContext) -> Iterator[tuple[Run, dict[str, float]]]:
    """Load a configuration up to its first step.

    Args:
        config: As for `bench`.
        context: As for a run.

    Yields:
        The run, and the seconds of each phase so far.
    """
    config, started = only_training(config), time.perf_counter()
    prepared = prepare(config, context, Console(-1))
    phases = {"prepare": time.perf_counter() - started}
    with prepared.world.formed(prepared.device, config.dist_env):
        mark = time.perf_counter()
        with loaded(config, context, prepared) as run:
            phases["load"] = time.perf_counter() - mark
            yield run, phases


@contextmanager
def loaded(config: RunConfig, context: RunContext, prepared: Prepared) -> Iterator[Run]:
    """A run that can take its first step, and leaves nothing behind.

    Args:
        config: As `only_training` gives it.
        context: As for a run.
        prepared: From it, its world formed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="automodel-") as place,
        getattr(prepared.source, "running", nullcontext)(),
    ):
        run = load(config, context, Console(-1), prepared, Path(place), None)
        with run.compilation.layers_of(run.model, deterministic=config.deterministic):
            run.model.train()
            yield run


def only_training(config: RunConfig) -> RunConfig:
    """The configuration without what isn't training. Its length stays, which `compile: auto`
    goes by."""
    return attrs.evolve(
        config,
        lr_scheduler=LRScheduler(lr_decay_style="constant"),
        checkpoint=attrs.evolve(config.checkpoint, enabled=False, keep_best=None),
        validation_dataset=None,
        early_stopping=None,
        generation_eval=None,
        wandb=None,
        loggers=[],
    )


def counted(run: Run) -> Rows:
    """Count what goes into each step from now on."""
    rows, next_step = Rows(), run.data.next_step

    def counting() -> Any:
        data = next_step()
        rows.add(data.batches)
        return data

    run.data.next_step = counting
    return rows


def figures(
    run: Run, readings: list[Reading], rows: Rows, warmup: int, phases: dict[str, float]
) -> dict[str, Any]:
    """What the timed steps took. A step lasts from the end of the one before to its own."""
    metrics = [each.metrics() for each in readings]
    timed = range(warmup, len(readings))
    seconds = [readings[i].clock.since(readings[i - 1].clock) for i in timed]
    total = sum(seconds)
    ranks = run.world.data_ranks
    done = {
        "supervised": sum(metrics[i].num_label_tokens for i in timed),
        "real": sum(metrics[i].num_tokens for i in timed),
        "padded": ranks * sum(rows.slots[i] for i in timed),
        "images": ranks * sum(rows.images[i] for i in timed),
    }
    flops = StepFlops.of(run.model) if run.world.alone else None
    peak = peak_of(run.objective.device)
    needed = sum(flops.step(rows.steps[i]) for i in timed) if flops else None
    return {
        "steps": len(seconds),
        "ranks": run.world.size,
        "tokens_per_second": {
            name: count / total for name, count in done.items() if name != "images"
        },
        "images_per_second": done["images"] / total,
        "step_seconds": {f"p{each}": quantile(seconds, each / 100) for each in PERCENTILES},
        "tflops_per_second": needed / total / 1e12 if needed else None,
        "mfu": needed / total / peak if needed and peak else None,
        "mfu_convention": CONVENTION,
        "peak_memory_gib": peak_memory_gib(run.objective.device),
        "data_wait_share": sum(metrics[i].data_seconds for i in timed) / total,
        "recompiles": metrics[-1].recompiles,
        "compiled_graphs": run.compilation.graphs,
        "compile_seconds": run.compilation.seconds,
        "losses": [each.loss for each in metrics],
        "compiled": run.compilation.settings is not None,
        "time_to_first_step_seconds": sum(phases.values()),
        "phases_seconds": phases,
    }


def quantile(values: list[float], share: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(share).item()


@contextmanager
def profiled(folder: Path | None, run: Run, total: int) -> Iterator[Callable[[], object]]:
    """Trace the last of `total` steps into `folder`, if there is one: `trace.json` for Chrome or
    Perfetto, and on a GPU `memory.pickle` for https://pytorch.org/memory_viz. Yields what each step
    calls."""
    if folder is None:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = run.objective.device.type == "cuda"
    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=100_000)
    shown = min(3, total - 1)
    schedule = torch.profiler.schedule(wait=max(total - shown - 1, 0), warmup=1, active=shown)
    with torch.profiler.profile(schedule=schedule) as profile:
        yield profile.step
        if on_gpu:
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(folder / "trace.json"))
    if on_gpu:
        torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
        torch.cuda.memory._record_memory_history(enabled=None)
