"""From a checked configuration to a finished run, top to bottom.

What can be refused is refused in order of cost: folder, model configuration and tokenizer, data,
schedule, disk space; only then are weights read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel

from automodel_core.config.schema import RunConfig, Target
from automodel_core.errors import SavedAfterSignal, UserError
from automodel_core.protocols import Dataset, ModelSource
from automodel_core.train.checkpoint import (
    CheckpointWriter,
    best_checkpoint,
    discard_unfinished,
    read_manifest,
)
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.data import TrainingData, ValidationData
from automodel_core.train.generation import (
    Answers,
    Question,
    answer_all,
    questions_from,
    scored,
)
from automodel_core.train.guards import Guards, LostUpdates, check_trainable
from automodel_core.train.head import check_head, split_head
from automodel_core.train.loggers import Loggers, build_loggers
from automodel_core.train.loop import Run, restore, train
from automodel_core.train.precision import PrecisionPlan, assert_precision, plan_precision
from automodel_core.train.quiet import quiet_libraries
from automodel_core.train.rng import seed_everything
from automodel_core.train.run_folder import (
    check_disk_space,
    checkpoints_in,
    latest_checkpoint,
    locked,
    open_run_folder,
    point_to,
    prune,
)
from automodel_core.train.schedule import Horizon, check_schedule, plan_horizon
from automodel_core.train.state import load_training_state
from automodel_core.train.status import State, Status, write_status
from automodel_core.train.step import Objective
from automodel_core.train.summary import print_plan, print_summary


@attrs.frozen(kw_only=True)
class Prepared:
    """What is known before any weights are read."""

    source: ModelSource
    tokenizer: Any
    supplied: dict[str, Any]
    loggers: Loggers
    device: torch.device
    precision: PrecisionPlan
    data: TrainingData
    validation: dict[str, ValidationData]
    questions: list[Question]
    horizon: Horizon


def fine_tune(config: RunConfig, context: RunContext) -> Path:
    """Run a configuration from start to finish.

    Returns:
        The run folder.

    Raises:
        UserError: Something in the configuration, the model or the data cannot be used.
        GuardStop: A guard stopped the run.
        SavedAfterSignal: A signal stopped it, and it was saved.
    """
    quiet_libraries()
    console = Console(context.verbosity)
    folder = open_run_folder(config.checkpoint.checkpoint_dir, fresh=context.fresh)
    with locked(folder):
        discard_unfinished(folder)
        checkpoint = checkpoint_to_resume(folder, context.resume)
        started = time.perf_counter()
        prepared = prepare(config, context, console)
        check_space(config, prepared, folder)
        run = load(config, context, console, prepared, folder, checkpoint)
        run.seconds["prepare"] = run.seconds.get("prepare", 0.0) + time.perf_counter() - started
        if run.finished:
            console.say(
                f"{folder} already holds this run, finished at step {run.step}. "
                "Raise max_steps or num_epochs to go on, or pass --fresh to start again."
            )
            return folder
        with observed(run, context.command):
            print_plan(console, run, prepared.source)
            before = answers_before(run, prepared.questions)
            train(run)
            if before is not None:
                after = answer(run, prepared.questions, "after")
                shown = config.generation_eval.num_samples
                console.answers(prepared.questions, before, after, shown)
            print_summary(console, run)
    return folder


@contextlib.contextmanager
def observed(run: Run, command: str) -> Iterator[None]:
    """Tell the observers, and whoever looks at the folder, that the run began and how it ended."""
    hooks, folder = run.hooks, run.folder
    hooks.automodel_model_built(folder=folder, model=run.model)
    total = run.horizon.total_steps

    def note(state: State, reason: str = "") -> None:
        write_status(folder, Status(state, run.step, total, command, reason))

    note("running")
    hooks.automodel_run_start(folder=folder, config=run.config, step=run.step, total_steps=total)
    run.loggers.start(folder, run.step)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, SavedAfterSignal | KeyboardInterrupt)
        state: State = "stopped" if stopped else "failed"
        note(state, str(error).partition("\n")[0])
        run.loggers.finish(state)
        hooks.automodel_exception(folder=folder, step=run.step, error=error)
        raise
    note("finished")
    run.loggers.finish("finished")
    hooks.automodel_run_end(folder=folder, step=run.step)


def checkpoint_to_resume(folder: Path, resume: str) -> Path | None:
    """The checkpoint that this run goes on from, whole and checked; None starts at step 0."""
    if resume == "none":
        if checkpoints_in(folder):
            raise UserError(
                f"{folder} already holds a run; --resume none would mix two runs in one folder.",
                fix="pass --fresh instead: it starts a new folder beside that one",
                path=("checkpoint", "checkpoint_dir"),
            )
        return None
    checkpoint = latest_checkpoint(folder) if resume == "latest" else Path(resume)
    if checkpoint is not None:
        read_manifest(checkpoint)
    return checkpoint


def prepare(config: RunConfig, context: RunContext, console: Console) -> Prepared:
    """Everything that can be built, and refused, without weights."""
    check_metrics(config)
    device = choose_device(console)
    source: ModelSource = context.targets.build(config.model, {"seed": config.rng.seed})
    precision = plan_precision(source.torch_dtype, device)
    tokenizer = load_tokenizer(config, source)
    supplied = {
        "tokenizer": tokenizer,
        "processor": load_processor(config, source),
        "model_config": source.config,
        "seed": config.rng.seed,
    }
    loggers = build_loggers(config, context, supplied)
    dataset = build_dataset(context, console, config.dataset, supplied)
    data = TrainingData.build(config, context.targets, dataset, supplied)
    horizon = plan_horizon(config.step_scheduler, data.steps_per_epoch)
    check_schedule(config.lr_scheduler, horizon)
    validation = {
        name: ValidationData.build(
            config, context.targets, build_dataset(context, console, target, supplied), supplied
        )
        for name, target in validation_targets(config).items()
    }
    questions = []
    if config.generation_eval is not None:
        asked = build_dataset(context, console, config.generation_eval.dataset, supplied)
        questions = questions_from(asked, tokenizer)
    if config.distributed is not None:
        context.targets.build(config.distributed, supplied)
    return Prepared(
        source=source,
        tokenizer=tokenizer,
        supplied=supplied,
        loggers=loggers,
        device=device,
        precision=precision,
        data=data,
        validation=validation,
        questions=questions,
        horizon=horizon,
    )


def validation_targets(config: RunConfig) -> dict[str, Target]:
    """The validation sets by name; a single one has none."""
    section = config.validation_dataset
    if section is None:
        return {}
    return {"": section} if isinstance(section, Target) else section


def check_metrics(config: RunConfig) -> None:
    """Refuse a metric that no validation set of this run produces."""
    names = [f"{name}/loss" if name else "loss" for name in validation_targets(config)]
    wanted = {("checkpoint", "keep_best"): config.checkpoint.keep_best}
    if config.early_stopping is not None:
        wanted["early_stopping", "metric"] = config.early_stopping.metric
    for path, metric in wanted.items():
        if metric is not None and metric not in names:
            raise UserError(
                f"`{metric}` is not a validation metric of this run.",
                fix=f"write {' or '.join(names)}" if names else "add a validation_dataset",
                path=path,
            )


def choose_device(console: Console) -> torch.device:
    """The first CUDA device, else the CPU. Apple's MPS is refused by name: it is untested."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        console.say("This machine has an MPS device, which isn't supported: training on the CPU.")
    return torch.device("cpu")


def load_tokenizer(config: RunConfig, source: ModelSource) -> Any:
    """The `tokenizer:` section's, else the model's own."""
    section = config.tokenizer
    if section is None:
        return source.load_tokenizer()
    return load_auto(AutoTokenizer, section, "tokenizer")


def load_processor(config: RunConfig, source: ModelSource) -> Any:
    """The `processor:` section's, else the model's own; None for text models."""
    section = config.processor
    return (
        source.load_processor()
        if section is None
        else load_auto(AutoProcessor, section, "processor")
    )


def load_auto(auto_class: Any, section: Any, name: str) -> Any:
    path = section.pretrained_model_name_or_path
    try:
        return auto_class.from_pretrained(path, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise UserError(
            f"The {name} {path} cannot be loaded: {str(error).splitlines()[0]}",
            path=(name, "pretrained_model_name_or_path"),
        ) from None


def build_dataset(
    context: RunContext, console: Console, target: Any, supplied: dict[str, Any]
) -> Dataset:
    """Build a dataset and print what it has to say about itself."""
    dataset: Dataset = context.targets.build(target, supplied)
    for note in getattr(dataset, "notes", ()):
        console.say(f"{'.'.join(map(str, target.path))}: {note}")
    if not len(dataset):
        raise UserError("The data set has no samples.", path=target.path)
    return dataset


def check_space(config: RunConfig, prepared: Prepared, folder: Path) -> None:
    """Room for every checkpoint that will be kept, and for one being written."""
    if not config.checkpoint.enabled or prepared.source.weight_bytes is None:
        return
    parameters = prepared.source.parameter_count
    saved = parameters * prepared.precision.parameters.itemsize * 3  # weights, two moments
    every = config.checkpoint.save_every_steps
    count = 1 + (prepared.horizon.total_steps - 1) // every if every else 1
    check_disk_space(folder, saved * count, f"{count} checkpoint(s)")


def load(
    config: RunConfig,
    context: RunContext,
    console: Console,
    prepared: Prepared,
    folder: Path,
    checkpoint: Path | None,
) -> Run:
    """Model, optimizer and state: the part that reads weights."""
    if config.distributed is not None:
        context.targets.build(config.distributed, prepared.supplied)
    model = load_model(prepared, checkpoint)
    check_trainable(model)
    assert_precision(model, prepared.precision)
    optimizer = build_optimizer(config, context, model)
    run = Run(
        config=config,
        folder=folder,
        effective_yaml=context.effective_yaml,
        manifest={"model": prepared.source.name, "revision": prepared.source.revision},
        console=console,
        hooks=context.hooks,
        loggers=prepared.loggers,
        model=model,
        tokenizer=prepared.tokenizer,
        objective=build_objective(config, context, prepared, model),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(prepared.device.type, enabled=prepared.precision.loss_scaling),
        rng=context.targets.build(
            config.rng.target,
            prepared.supplied,
            seed=config.rng.seed,
            ranked=config.rng.ranked,
            rank=0,
        ),
        guards=Guards(config.guards, console.say, LostUpdates.of(model)),
        writer=CheckpointWriter(
            background=config.checkpoint.async_save,
            published=after_publishing(config, context, folder),
        ),
        data=prepared.data,
        validation=prepared.validation,
        horizon=prepared.horizon,
        peak_lr=[group["lr"] for group in optimizer.param_groups],
    )
    if checkpoint is not None:
        restore(run, *load_training_state(checkpoint / "training"))
        console.say(f"Going on from {checkpoint} (step {run.step}).")
        run.hooks.automodel_checkpoint_loaded(folder=folder, step=run.step, path=checkpoint)
    (folder / "config.yaml").write_text(context.effective_yaml)
    return run


def after_publishing(
    config: RunConfig, context: RunContext, folder: Path
) -> Callable[[Path], None]:
    """What follows a complete checkpoint: the link to the best, pruning, telling the observers."""
    section = config.checkpoint

    def published(checkpoint: Path) -> None:
        if section.keep_best and (best := best_checkpoint(folder, section.keep_best)):
            point_to(best, "best")
        prune(folder, section.keep_last)
        step = int(checkpoint.name.rpartition("_")[2])
        context.hooks.automodel_checkpoint_saved(folder=folder, step=step, path=checkpoint)

    return published


def load_model(prepared: Prepared, checkpoint: Path | None) -> PreTrainedModel:
    """The weights: the source's own, drawn from the run's seed, or a checkpoint's."""
    seed_everything(prepared.supplied["seed"])
    weights = checkpoint / "model" if checkpoint is not None else None
    model = prepared.source.load_model(prepared.precision.parameters, prepared.device, weights)
    if weights is None:
        prepared.source.check_vocabulary(model, prepared.tokenizer)
    return model


def build_objective(
    config: RunConfig, context: RunContext, prepared: Prepared, model: PreTrainedModel
) -> Objective:
    """The loss on what it works on: logits, or hidden states and the head that follows them."""
    loss = context.targets.build(config.loss_fn, prepared.supplied)
    parts = None
    if loss.input == "hidden_states":
        parts = split_head(model)
        check_head(model, parts)
    return Objective(model, loss, prepared.precision, prepared.device, parts)


def build_optimizer(
    config: RunConfig, context: RunContext, model: PreTrainedModel
) -> torch.optim.Optimizer:
    """The YAML's optimizer over what trains."""
    make = context.targets.bind(config.optimizer, {"seed": config.rng.seed})
    return make([p for p in model.parameters() if p.requires_grad])


def answers_before(run: Run, questions: list[Question]) -> Answers | None:
    """What the untrained model says, if the YAML asks; a resumed run reads what was said then."""
    if run.config.generation_eval is None:
        return None
    record = run.folder / "answers_before.json"
    if run.step and record.exists():
        return scored(json.loads(record.read_text()), questions)
    answers = answer(run, questions, "before")
    record.write_text(json.dumps(answers.texts))
    return answers


def answer(run: Run, questions: list[Question], when: str) -> Answers:
    """Answer the held-out questions."""
    section, started = run.config.generation_eval, time.perf_counter()
    run.console.say(f"Answering {len(questions)} held-out questions {when} training ...")
    answers = answer_all(
        run.model,
        run.tokenizer,
        questions,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
    )
    run.seconds["answer"] = run.seconds.get("answer", 0.0) + time.perf_counter() - started
    return answers
