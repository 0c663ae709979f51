"""What is printed before the first step and after the last."""

from __future__ import annotations

from pathlib import Path

from automodel_core.data_report.health import Health
from automodel_core.protocols import ModelSource
from automodel_core.train.console import Console
from automodel_core.train.metrics import peak_memory_gib
from automodel_core.train.run import Run
from automodel_core.train.run_folder import latest_checkpoint
from automodel_core.train.schedule import Horizon


def print_plan(console: Console, run: Run, source: ModelSource, health: Health) -> None:
    """What is about to happen, in numbers that the user can check."""
    config, horizon = run.config, run.horizon
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in run.model.parameters())
    revision = f" at {source.revision[:12]}" if source.revision else ""
    held_out = "".join(
        f", {data.amount} for validation{f' ({name})' if name else ''}"
        for name, data in run.validation.items()
    )
    layout = run.data.layout
    unit = run.data.unit
    batch = f"{layout.micro_batch} x {layout.grad_acc_steps}"
    console.heading("Plan")
    console.facts(
        [
            ("model", f"{source.name}{revision}"),
            ("trains", f"{trainable:,} of {total:,} parameters"),
            ("device", str(run.objective.device)),
            *attention(run),
            ("data", f"{run.data.amount}{held_out}"),
            ("learned", learned(health)),
            ("steps", f"{steps(horizon)} of {batch} {unit}{each_epoch(horizon)}"),
            ("learning rate", f"{run.peak_lr[0]:.2e}, {config.lr_scheduler.lr_decay_style}"),
            ("run folder", str(run.folder)),
        ]
    )
    console.heading(f"Precision ({run.objective.precision.reason})")
    console.facts(run.objective.precision.rows())


def steps(horizon: Horizon) -> str:
    """How many the run has, in words."""
    known = horizon.total_steps is not None
    return str(horizon.total_steps) if known else "as many as the stream has"


def each_epoch(horizon: Horizon) -> str:
    known = horizon.steps_per_epoch is not None
    return f", {horizon.steps_per_epoch} an epoch" if known else ""


def learned(health: Health) -> str:
    """The part of the tokens that is learned, of each source too, by a look at some samples."""
    parts = ", ".join(f"{name} {part.share:.1%}" for name, part in health.sources.items())
    return (
        f"{health.share:.1%} of the tokens{f' ({parts})' if parts else ''}, by a look at "
        f"{health.documents:,} samples"
    )


def attention(run: Run) -> list[tuple[str, str]]:
    """What computes attention, for models that say."""
    name = getattr(run.model.config, "_attn_implementation", None)
    return [("attention", name)] if name else []


def print_summary(console: Console, run: Run, command: str) -> None:
    """Where the model is, how to load it, what the run cost, and what to try next."""
    training = run.seconds["train"]
    rate = run.label_tokens / training if training else 0.0
    waited = run.seconds.get("data", 0.0) / training if training else 0.0
    phases = ", ".join(
        f"{name} {seconds:.0f} s"
        for name, seconds in run.seconds.items()
        if seconds and name != "data"
    )
    checkpoint = latest_checkpoint(run.folder)
    model = run.folder / "latest" / "model"
    console.heading("Done")
    console.facts(
        [
            ("trained", f"{run.step} steps, {run.label_tokens:,} supervised tokens"),
            ("speed", f"{rate:,.0f} supervised tokens per second"),
            ("time", phases),
            ("waited for data", f"{waited:.1%} of the training"),
            *(("data", note) for note in run.data.notes),
            *([("compiled", run.compilation.summary())] if run.compilation.settings else []),
            ("peak memory", f"{peak_memory_gib(run.objective.device):.1f} GiB"),
            ("logs", str(run.folder / "training.jsonl")),
            *([("model", str(model))] if checkpoint else []),
        ]
    )
    if checkpoint is not None:
        console.heading("Load it anywhere")
        name = type(run.model).__name__
        if run.adapter is None:
            console.say(f"  {loading_line(name, model)}")
        elif run.processor is None:
            console.say(f"  {adapter_line(model)}")
        else:
            console.say(f"  {adapter_on_line(name, run.manifest['model'], model)}")
    console.heading("Next")
    for line in next_commands(run, command):
        console.say(f"  {line}")


def next_commands(run: Run, command: str) -> list[str]:
    """Commands that a reader can paste: talk to the model, make an adapter a model of its own,
    change something, look at the runs, see every setting."""
    halved = f"{run.peak_lr[0] / 2:.0e}".replace("e-0", "e-")
    words = command.replace("automodel run", "automodel explain", 1)
    saved = latest_checkpoint(run.folder) is not None
    return [
        *([f"automodel chat {run.folder} --compare-base"] if saved else []),
        *([f"automodel merge {run.folder}"] if saved and run.adapter else []),
        f"{command} optimizer.lr={halved} --fresh",
        f"automodel runs {run.folder.parent}",
        words,
    ]


def loading_line(class_name: str, folder: Path) -> str:
    """Python that opens the saved model in plain transformers."""
    return f'from transformers import {class_name}; {class_name}.from_pretrained("{folder}")'


def adapter_line(folder: Path) -> str:
    """Python that opens the saved adapter, on its base model, in PEFT."""
    name = "AutoPeftModelForCausalLM"
    return f'from peft import {name}; {name}.from_pretrained("{folder}")'


def adapter_on_line(class_name: str, base: str, folder: Path) -> str:
    """Python that opens the saved adapter of a model for which PEFT has no class of its own."""
    opened = f'{class_name}.from_pretrained("{base}")'
    return (
        f"from peft import PeftModel; from transformers import {class_name}; "
        f'PeftModel.from_pretrained({opened}, "{folder}")'
    )
