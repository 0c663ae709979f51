"""Everything that can be built, and refused, before any weights are read, in order of cost: metrics
and device, the model's configuration and tokenizer, loggers, data, schedule, disk space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from automodel_core import ranks
from automodel_core.config.schema import PreProcessor, RunConfig, Target
from automodel_core.config.streams import asked_by_number, conflicts
from automodel_core.data_report.at_start import check_data
from automodel_core.data_report.health import Health
from automodel_core.errors import UserError
from automodel_core.processors import read_processor, with_tokenizer
from automodel_core.protocols import Adapter, Dataset, ModelSource, ParallelManager, Stream
from automodel_core.targets import Targets, at
from automodel_core.train.compiling import Compilation, plan_compilation
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.data import TrainingData, ValidationData
from automodel_core.train.freezing import freeze
from automodel_core.train.generation import Question, questions_from
from automodel_core.train.image_blocks import looks_elsewhere
from automodel_core.train.loggers import Loggers, build_loggers
from automodel_core.train.one_process import OneProcess
from automodel_core.train.packed_documents import OfRows
from automodel_core.train.packing import (
    PackedDataset,
    carries_state,
    check_collated,
    leaking,
)
from automodel_core.train.precision import PrecisionPlan, plan_precision
from automodel_core.train.run_folder import check_disk_space
from automodel_core.train.schedule import Horizon, check_schedule, plan_horizon
from automodel_core.train.stream_data import StreamData, StreamValidation
from automodel_core.train.streams import Head, is_stream
from automodel_core.train.world import World, chosen_backend

T = TypeVar("T")

# What spreads a run over several processes if the YAML doesn't say.
SEVERAL = Target("ddp", "distributed", {}, ("distributed",))


@attrs.frozen(kw_only=True)
class Prepared:
    """What is known before any weights are read."""

    world: World
    source: ModelSource
    tokenizer: Any
    supplied: dict[str, Any]
    adapter: Adapter | None
    loggers: Loggers
    device: torch.device
    precision: PrecisionPlan
    data: TrainingData | StreamData
    health: Health
    validation: dict[str, ValidationData | StreamValidation]
    questions: list[Question]
    horizon: Horizon
    compilation: Compilation


def prepare(config: RunConfig, context: RunContext, console: Console) -> Prepared:
    """Everything that can be built, and refused, without weights."""
    check_metrics(config)
    world = plan_world(config, context, console)
    device = choose_device(console)
    chosen_backend(config.dist_env.backend, device, world.size)
    source, tokenizer, supplied = open_source(config, context.targets)
    for choice in getattr(source, "choices", ()):
        console.say(choice)
    adapter: Adapter | None = None
    if config.peft is not None:
        if config.checkpoint.model_save_format != "safetensors":
            raise UserError(
                "Adapters are saved as PEFT saves them, in safetensors.",
                fix="write model_save_format: safetensors",
                path=("checkpoint", "model_save_format"),
            )
        adapter = context.targets.build(config.peft, supplied)
    if config.freeze_config is not None:
        freeze(source.empty_model(), config.freeze_config)
    precision = plan_precision(source.torch_dtype, device, adapter.dtype if adapter else None)
    loggers = build_loggers(config, context, supplied) if world.is_main else Loggers()
    dataset = build_dataset(context.targets, console, config.dataset, supplied)
    health = check_data(config, context.targets, source, supplied, dataset, console)
    check_packing(config, source, world)
    dataset = packed(config, context.targets, console, dataset, supplied)
    data = training_data(config, context.targets, dataset, supplied, world, console)
    horizon = plan_horizon(config.step_scheduler, data.steps_per_epoch)
    check_schedule(config.lr_scheduler, horizon)
    compilation = plan_compilation(config, world, device, source, data, horizon)
    if compilation.note:
        console.say(compilation.note)
    validation = {
        name: validation_data(
            config,
            context.targets,
            packed(
                config,
                context.targets,
                console,
                build_dataset(context.targets, console, target, supplied),
                supplied,
            ),
            supplied,
            world,
            console,
        )
        for name, target in validation_targets(config).items()
    }
    questions = []
    if config.generation_eval is not None:
        asked = build_dataset(context.targets, console, config.generation_eval.dataset, supplied)
        if isinstance(asked, Head):
            raise asked_by_number().as_error()
        if "input_ids" not in asked[0]:
            raise UserError(
                "These samples are conversations, no tokens: images can't be asked about here.",
                fix="leave generation_eval out, and ask afterwards with automodel generate",
                path=("generation_eval", "dataset"),
            )
        questions = questions_from(asked, tokenizer)
    return Prepared(
        world=world,
        source=source,
        tokenizer=tokenizer,
        supplied=supplied,
        adapter=adapter,
        loggers=loggers,
        device=device,
        precision=precision,
        data=data,
        health=health,
        validation=validation,
        questions=questions,
        horizon=horizon,
        compilation=compilation,
    )


def open_source(
    config: RunConfig, targets: Targets
) -> tuple[ModelSource, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model before its weights are read, its tokenizer, and what targets may ask for."""
    told = {
        "seed": config.rng.seed,
        "packed": config.packed_sequence.packed_sequence_size > 0,
    }
    source: ModelSource = targets.build(config.model, told)
    processor, tokenizer = load_readers(config, source)
    supplied = {
        "tokenizer": tokenizer,
        "processor": processor,
        "model_config": source.config,
        "seed": config.rng.seed,
    }
    return source, tokenizer, supplied


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


def plan_world(config: RunConfig, context: RunContext, console: Console) -> World:
    """How the processes that were started share the work; they don't talk to each other yet.

    Raises:
        UserError: The YAML's sizes don't fit their number.
    """
    world_size = ranks.world_size()
    if config.distributed is not None:
        manager: ParallelManager = context.targets.build(config.distributed, {})
    elif world_size > 1:
        manager = context.targets.build(SEVERAL, {})
    else:
        manager = OneProcess()
    path = config.distributed.path if config.distributed else ()
    with at(path):
        sizes = manager.sizes(world_size)
    world = World(manager, sizes, ranks.rank())
    if world.alone and config.dist_env.backend is not None:
        asked = config.dist_env.backend
        console.say(f"One process: there is no process group, so dist_env.backend {asked} waits.")
    return world


def choose_device(console: Console) -> torch.device:
    """This rank's CUDA device, else the CPU. Apple's MPS is refused by name: it is untested."""
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank())
        return torch.device("cuda", ranks.local_rank())
    if torch.backends.mps.is_available():
        console.say("This machine has an MPS device, which isn't supported: training on the CPU.")
    return torch.device("cpu")


def load_readers(
    config: RunConfig, source: ModelSource
) -> tuple[ProcessorMixin | None, PreTrainedTokenizerBase]:
    """The processor, which text models lack, and the tokenizer: the model's own, but for what the
    sections `processor:` and `tokenizer:` name. The tokenizer is always the processor's."""
    if config.processor is not None:
        processor = load_section(read_processor, config.processor, "processor")
    else:
        with at(config.model.path):
            processor = source.load_processor()
    if config.tokenizer is not None:
        tokenizer = load_section(read_tokenizer, config.tokenizer, "tokenizer")
        processor = None if processor is None else with_tokenizer(processor, tokenizer)
    elif processor is None:
        with at(config.model.path):
            return None, source.load_tokenizer()
    return processor, tokenizer if processor is None else processor.tokenizer


def read_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)


def load_section(read: Callable[..., T], section: PreProcessor, name: str) -> T:
    """What a `tokenizer:` or `processor:` section names; its repository's code never runs.

    Raises:
        UserError: It can't be read.
    """
    path = section.pretrained_model_name_or_path
    try:
        return read(path, section.revision)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The {name} {path} cannot be loaded: {said}",
            path=(name, "pretrained_model_name_or_path"),
        ) from None


def training_data(
    config: RunConfig,
    targets: Targets,
    dataset: Dataset | Head,
    supplied: dict[str, Any],
    world: World,
    console: Console,
) -> TrainingData | StreamData:
    """What a run trains on, step by step.

    Raises:
        UserError: The configuration doesn't go with a stream, or with what is none.
    """
    if not isinstance(dataset, Head):
        return TrainingData.build(config, targets, dataset, supplied, world)
    for conflict in conflicts(config):
        raise conflict.as_error()
    return StreamData.build(config, targets, dataset, supplied, world, console.say)


def validation_data(
    config: RunConfig,
    targets: Targets,
    dataset: Dataset | Head,
    supplied: dict[str, Any],
    world: World,
    console: Console,
) -> ValidationData | StreamValidation:
    """One of the sets that a run validates on."""
    if isinstance(dataset, Head):
        return StreamValidation.build(config, targets, dataset, supplied, world, console.say)
    return ValidationData.build(config, targets, dataset, supplied, world)


def build_dataset(
    targets: Targets, console: Console, target: Any, supplied: dict[str, Any]
) -> Dataset | Head:
    """Build a dataset and print what it has to say about itself; of a stream read the first
    samples.

    Raises:
        UserError: It is a stream of another kind than the engine's, or empty.
    """
    name = ".".join(map(str, target.path))
    with console.preparing(name):
        dataset: Dataset | Stream = targets.build(target, supplied)
        if is_stream(dataset):
            with at(target.path):
                return Head.of(dataset, target.path)
    by_index = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not by_index or isinstance(dataset, torch.utils.data.IterableDataset):
        raise UserError(
            f"The data set is a stream: its {type(dataset).__name__} has no length, or gives no "
            "sample by its index, so no run on it could be resumed.",
            fix="return something with __len__ and __getitem__, such as a list; or write it as a "
            "function that yields, which can be streamed (docs/your_own_dataset.md)",
            path=target.path,
        )
    for note in getattr(dataset, "notes", ()):
        console.say(f"{name}: {note}")
    if not len(dataset):
        raise UserError("The data set has no samples.", path=target.path)
    return dataset


def check_packing(config: RunConfig, source: ModelSource, world: World) -> None:
    """Refuse what packed rows can't go with, as far as it is known without weights."""
    if not config.packed_sequence.packed_sequence_size:
        return
    if carries_state(model := source.empty_model()):
        raise leaking(type(model).__name__)
    if looks_elsewhere(model.config):
        raise UserError(
            f"In packed rows the image tokens of {type(model).__name__} would not see each other "
            "as they do apart: its masks are made for one document.",
            fix="leave packed_sequence out; dataloader.group_by_length saves padding as well",
            path=("packed_sequence", "packed_sequence_size"),
        )
    if world.sizes.cp > 1:
        raise UserError(
            "Packed rows can't be shared by the ranks of a sequence: their chunks would cut "
            "documents apart.",
            fix="write cp_size: 1, or leave packed_sequence out",
            path=("packed_sequence", "packed_sequence_size"),
        )


def packed(
    config: RunConfig,
    targets: Targets,
    console: Console,
    dataset: Dataset | Head,
    supplied: dict[str, Any],
) -> Dataset | Head:
    """The data set, in packed rows if the YAML says so. A stream is packed as it comes; here its
    first samples show whether it can be."""
    size, path = config.packed_sequence.packed_sequence_size, ("packed_sequence",)
    if not size:
        return dataset
    collate = OfRows(targets.bind(config.dataloader.collate_fn, supplied))
    with console.preparing("packed_sequence"):
        rows = PackedDataset.plan(dataset, size, config.rng.seed, path, collate)
    check_collated(rows, collate, path)
    if isinstance(dataset, Head):
        return dataset
    for note in rows.notes:
        console.say(note)
    return rows


def checkpoint_bytes(prepared: Prepared) -> int:
    """The weights of a whole model and two moments of each, as they are held."""
    return prepared.source.parameter_count * prepared.precision.parameters.itemsize * 3


def check_space(config: RunConfig, prepared: Prepared, folder: Path) -> None:
    """Room for every checkpoint that will be kept, and for one being written."""
    section = config.checkpoint
    if not section.enabled or prepared.adapter is not None:  # an adapter fits anywhere
        return
    every, total = section.save_every_steps, prepared.horizon.total_steps
    if total is None:  # of a stream of unknown length there will be one or two
        total = 2 * (every or 1)
    count = 1 + (total - 1) // every if every else 1
    if section.keep_last is not None:
        count = min(count, section.keep_last + 2)  # the best one, and the one being written
    check_disk_space(
        folder,
        checkpoint_bytes(prepared) * count,
        f"{count} checkpoint(s)",
        "choose a checkpoint_dir on a larger disk, or save less often",
        ("checkpoint", "checkpoint_dir"),
    )
