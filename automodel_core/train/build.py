"""From a checked configuration to a finished run, top to bottom.

What can be refused is refused before any weights are read: `prepare.py`. Here they are read, and
the run is put together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pluggy
import torch
from transformers import PreTrainedModel

from automodel_core import hooks, ranks
from automodel_core.config.schema import RunConfig
from automodel_core.errors import SavedAfterSignal, UserError
from automodel_core.protocols import Adapter
from automodel_core.targets import each_target
from automodel_core.train.checkpoint import CheckpointWriter, best_checkpoint, discard_unfinished
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.due import validation_owed
from automodel_core.train.generation import (
    Answers,
    Question,
    answer_all,
    scored,
)
from automodel_core.train.guards import Guards, LostUpdates, check_trainable
from automodel_core.train.loop import train
from automodel_core.train.loss_scaling import loss_scaler
from automodel_core.train.model_loading import load_model
from automodel_core.train.observed import observed
from automodel_core.train.packing import check_documents_apart
from automodel_core.train.packing_trial import check_images_apart
from automodel_core.train.precision import assert_precision
from automodel_core.train.prepare import Prepared, check_space, prepare
from automodel_core.train.quiet import quiet_libraries
from automodel_core.train.rank_log import rank_log
from automodel_core.train.resume import check_same_data, checkpoint_to_resume
from automodel_core.train.rng import be_deterministic
from automodel_core.train.run import Run
from automodel_core.train.run_folder import (
    go_back_to,
    locked,
    open_run_folder,
    point_to,
    prune,
)
from automodel_core.train.saving import forget_later_lines, restore
from automodel_core.train.signals import StopRequest, stop_on_signals
from automodel_core.train.step import Objective
from automodel_core.train.summary import print_plan, print_summary
from automodel_core.train.together import Together
from automodel_core.train.watched import watched
from automodel_core.train.world import World, check_alike


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
    with stop_on_signals() as stop:
        try:
            return whole_run(config, context, stop)
        except KeyboardInterrupt:
            if stop.patient:
                raise
            raise SavedAfterSignal(
                f"Stopped by {stop.signal_name}; no step was under way, so nothing had to be "
                "saved.\nRun the same command again to go on."
            ) from None


def whole_run(config: RunConfig, context: RunContext, stop: StopRequest) -> Path:
    """See `fine_tune`, which adds what a signal means before and after training."""
    is_main = ranks.rank() == 0
    console = Console(context.verbosity if is_main else -1)
    for each in context.allowed:
        console.say(f"The configuration may name {each['prefix']}: allowed by {each['source']}.")
    if config.deterministic:
        be_deterministic()
    with run_folder(config, context) if is_main else nullcontext((None, None)) as place:
        started = time.perf_counter()
        prepared = prepare(config, context, console)
        world = prepared.world
        with world.formed(prepared.device, config.dist_env):
            check_alike(world, facts(context))
            folder, checkpoint = (each and Path(each) for each in world.from_main(place))
            logged = partial(rank_log, folder, world.rank, context.redact)
            with (
                nullcontext() if world.alone else logged(),
                watched(world, folder, config.dist_env, context.command) as progress,
                getattr(prepared.source, "running", nullcontext)(),
            ):
                if is_main:
                    check_space(config, prepared, folder)
                if checkpoint is not None:
                    check_same_data(checkpoint, prepared.data.fingerprint, config.dataset.path)
                run = progress.run = load(config, context, console, prepared, folder, checkpoint)
                spent = run.seconds.get("prepare", 0.0)
                run.seconds["prepare"] = spent + time.perf_counter() - started
                if run.finished and not validation_owed(run):
                    console.say(
                        f"{folder} already holds this run, finished at step {run.step}. "
                        "Raise max_steps or num_epochs to go on, or pass --fresh to start again."
                    )
                    return folder
                try:
                    train_and_tell(run, context, prepared, stop)
                finally:
                    run.writer.finish()
    return folder


def train_and_tell(run: Run, context: RunContext, prepared: Prepared, stop: StopRequest) -> None:
    """Training, between what is told before and after it."""
    console = run.console
    if run.world.is_main:
        (run.folder / "config.yaml").write_text(context.effective_yaml)
    with observed(run, context.command) if run.world.is_main else nullcontext():
        print_plan(console, run, prepared.source, prepared.health)
        before = answers_before(run, prepared.questions)
        with run.compilation.layers_of(run.model, deterministic=run.config.deterministic):
            train(run, stop)
        if before is not None:
            after = answer(run, prepared.questions, "after")
            console.answers(
                prepared.questions, before, after, run.config.generation_eval.num_samples
            )
        print_summary(console, run, context.command)


@contextmanager
def run_folder(config: RunConfig, context: RunContext) -> Iterator[tuple[str, str | None]]:
    """The run's folder, locked, and the checkpoint to go on from; rank 0 keeps it."""
    folder = open_run_folder(config.checkpoint.checkpoint_dir, fresh=context.fresh)
    with locked(folder):
        discard_unfinished(folder)
        checkpoint = checkpoint_to_resume(folder, context)
        yield str(folder), checkpoint and str(checkpoint)


def facts(context: RunContext) -> dict[str, str]:
    """What must be equal on all ranks."""
    names = ("automodel-core", "torch", "transformers")
    told = {f"the version of {name}": version(name) for name in names}
    digest = hashlib.sha256(json.dumps(context.effective, default=str).encode()).hexdigest()
    return {**told, "the configuration": f"sha256 {digest[:12]}"}


def load(
    config: RunConfig,
    context: RunContext,
    console: Console,
    prepared: Prepared,
    folder: Path,
    checkpoint: Path | None,
) -> Run:
    """Model, optimizer and state: the part that reads weights."""
    world = prepared.world
    loaded = load_model(config, prepared, checkpoint, console)
    model = loaded.model
    check_trainable(model)
    assert_precision(model, prepared.precision)
    optimizer = build_optimizer(config, context, model, prepared.adapter)
    packed = config.packed_sequence.packed_sequence_size
    objective = Objective.of(
        model,
        loaded.spread,
        context.targets.build(config.loss_fn, prepared.supplied),
        prepared.precision,
        prepared.device,
        world,
        # Packed rows are of one length, whatever is in them.
        multiple=packed or prepared.compilation.multiple,
    )
    if packed:
        check_documents_apart(objective, model)
        collate = context.targets.bind(config.dataloader.collate_fn, prepared.supplied)
        check_images_apart(objective, model, prepared.data.dataset, collate)
    run = Run(
        config=config,
        world=world,
        folder=folder,
        effective_yaml=context.effective_yaml,
        manifest=provenance(config, context, prepared),
        console=console,
        hooks=context.hooks if world.is_main else no_hooks(),
        loggers=prepared.loggers,
        model=model,
        sharded_saves=loaded.sharded_saves,
        adapter=prepared.adapter,
        tokenizer=prepared.tokenizer,
        processor=prepared.supplied["processor"],
        objective=objective,
        compilation=prepared.compilation,
        optimizer=optimizer,
        scaler=loss_scaler(
            prepared.device, enabled=prepared.precision.loss_scaling, alone=world.alone
        ),
        rng=context.targets.build(
            config.rng.target,
            prepared.supplied,
            seed=config.rng.seed,
            ranked=config.rng.ranked,
            rank=world.data_rank,
        ),
        guards=Guards(
            config.guards,
            console.say,
            LostUpdates.of(optimizer),
            loss_scaling=prepared.precision.loss_scaling,
            batch_is_chosen=config.step_scheduler.global_batch_size is not None,
        ),
        writer=CheckpointWriter(
            background=writes_beside(config, prepared.device),
            published=after_publishing(config, context, folder, world),
            together=Together(),
        ),
        data=prepared.data,
        validation=prepared.validation,
        horizon=prepared.horizon,
        peak_lr=[group["lr"] for group in optimizer.param_groups],
    )
    if checkpoint is None:
        forget_later_lines(run)
        run.guards.batch(run.data.layout)
    else:
        if world.is_main:
            go_back_to(checkpoint, folder)
        state = restore(run, checkpoint)
        console.say(f"Going on from {checkpoint} (step {run.step}){moved(state, run)}.")
        run.hooks.automodel_checkpoint_loaded(folder=folder, step=run.step, path=checkpoint)
    return run


def moved(state: dict[str, Any], run: Run) -> str:
    """How the run that is gone on with was spread, if that was otherwise."""
    before, now = state["ranks"], run.data.layout.ranks
    return "" if before == now else f" with {now} data-parallel ranks; it had {before}"


def no_hooks() -> pluggy.HookRelay:
    """Observers are told on rank 0 alone."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    return manager.hook


def writes_beside(config: RunConfig, device: torch.device) -> bool:
    """Whether checkpoints are written beside the run. Unless the YAML says, only where the state
    has to be copied into the host's memory anyway."""
    asked = config.checkpoint.async_save
    return device.type != "cpu" if asked is None else asked


def provenance(config: RunConfig, context: RunContext, prepared: Prepared) -> dict[str, Any]:
    """What every checkpoint of this run records of where it came from."""
    records = [context.targets.resolve(target).record for target, _ in each_target(config)]
    return {
        "model": prepared.source.name,
        "revision": prepared.source.revision,
        "data": prepared.data.fingerprint,
        "precision": dict(prepared.precision.rows()),
        "plugins": {each.distribution: each.version for each in records if each},
        "allowed": context.allowed,
    }


def after_publishing(
    config: RunConfig, context: RunContext, folder: Path, world: World
) -> Callable[[Path], None]:
    """What follows a complete checkpoint: the link to the best, pruning, telling the observers."""
    section = config.checkpoint

    def published(checkpoint: Path) -> None:
        if not world.is_main:
            return
        if section.keep_best and (best := best_checkpoint(folder, section.keep_best)):
            point_to(best, "best")
        prune(folder, section.keep_last)
        step = int(checkpoint.name.rpartition("_")[2])
        context.hooks.automodel_checkpoint_saved(folder=folder, step=step, path=checkpoint)

    return published


def build_optimizer(
    config: RunConfig, context: RunContext, model: PreTrainedModel, adapter: Adapter | None
) -> torch.optim.Optimizer:
    """The YAML's optimizer over what trains."""
    make = context.targets.bind(config.optimizer, {"seed": config.rng.seed})
    if may_be_fused(config, context, model):
        make = partial(make, fused=True)
    if adapter is not None:
        groups = adapter.parameter_groups(model, config.optimizer.arguments["lr"])
    else:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    try:
        return make(by_mesh(groups))
    except ValueError as error:  # how torch refuses a value, such as a negative lr
        raise UserError(f"{error}.", path=config.optimizer.path) from None


def may_be_fused(config: RunConfig, context: RunContext, model: PreTrainedModel) -> bool:
    """Whether the optimizer has a kernel for whole updates and the YAML leaves the choice to us.

    PyTorch's own default launches several kernels for each part of an update: on an H100 a whole
    step of the 1B shape takes 146 ms with it, and 133 fused. For parameters that are cut over ranks
    it has such kernels of Adam and AdamW alone.
    """
    signature = context.targets.resolve(config.optimizer).signature
    if signature is None or signature.get("fused") is None:
        return False
    chosen = {
        "fused",
        "foreach",
        "capturable",
        "differentiable",
    } & config.optimizer.arguments.keys()
    trained = [p for p in model.parameters() if p.requires_grad]
    made = context.targets.load(config.optimizer)
    adam = isinstance(made, type) and issubclass(made, torch.optim.Adam | torch.optim.AdamW)
    whole = not any(hasattr(p, "device_mesh") for p in trained)
    return not chosen and (adam or whole) and all(p.is_cuda for p in trained)


def by_mesh(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters that are cut over other ranks in groups of their own: optimizers that update many
    tensors at once can't mix them."""
    parted = []
    for group in groups:
        parts: dict[Any, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        parted += [{**group, "params": part} for part in parts.values()]
    return parted


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
