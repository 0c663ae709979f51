"""Every section and key of a run's YAML file. The docstrings and `doc` texts here are the user's
reference: `automodel explain`, the docs site and the error messages are made from them.

A key that other spellings may set has them in `config/aliases.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from automodel_core.errors import ConfigPath

# What a slot does with its target: "call" builds it once, "partial" binds its arguments and lets
# the engine call it later, "reference" passes the resolved object on as it is.
Use = Literal["call", "partial", "reference"]


# NeMo Automodel's names, of now and of before, for the one thing that a run does.
Recipe = Literal[
    "TrainFinetuneRecipeForNextTokenPrediction",
    "nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction",
    "nemo_automodel.recipes.llm.finetune.FinetuneRecipeForNextTokenPrediction",
]

LLM_TARGET = "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained"


@attrs.frozen
class Target:
    """What a `_target_` section asks for: a name and the arguments written beside it.

    Arguments may hold further Targets, in lists and mappings too.
    """

    name: str
    kind: str | None = None
    arguments: dict[str, Any] = attrs.field(factory=dict)
    path: ConfigPath = ()
    use: Use = "call"


@attrs.frozen
class Slot:
    """How a field of type Target is filled.

    Attributes:
        kind: Which registered names a bare `_target_` may use.
        use: What the engine does with it.
        given: Parameters that the engine passes and the YAML may not set.
        default: The `_target_` of a section that has none; None if it must have one.
        example: What to suggest where one is missing.
        beside: The keys that its section has itself, which the target is not given.
    """

    kind: str
    use: Use = "call"
    given: tuple[str, ...] = ()
    default: str | None = None
    example: str = ""
    beside: tuple[str, ...] = ()


def key(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    required: bool = False,
    secret: bool = False,
    slot: Slot | None = None,
    at_least: float | None = None,
) -> Any:
    """One key of a section.

    Args:
        doc: One sentence for the reference and for error messages.
        default: Its value when the YAML leaves it out. A section without one is then built from the
            defaults of its own keys, and a target from its slot's default name.
        required: The YAML may not leave it out.
        secret: Its value is never printed or saved.
        slot: For Target fields.
        at_least: The smallest number allowed.
    """
    metadata = {
        "doc": doc,
        "required": required,
        "secret": secret,
        "slot": slot,
        "at_least": at_least,
    }
    return attrs.field(default=default, repr=not secret, metadata=metadata)


@attrs.frozen(kw_only=True)
class StepScheduler:
    """How long to train and how often to validate and save. A step is an optimizer step."""

    grad_acc_steps: int | None = key(
        "Micro-batches per optimizer step on each data-parallel rank (1 if left out).",
        default=None,
        at_least=1,
    )
    global_batch_size: int | None = key(
        "Samples per optimizer step over all ranks; sets grad_acc_steps instead of naming it.",
        default=None,
        at_least=1,
    )
    max_steps: int | None = key(
        "Stop after this many steps, going round the data as often as needed.",
        default=None,
        at_least=1,
    )
    num_epochs: int | None = key(
        "Stop after this many passes over the data. With neither this nor max_steps: one.",
        default=None,
        at_least=1,
    )
    val_every_steps: int | None = key(
        "Validate every N steps; by default at each checkpoint and at the end.",
        default=None,
        at_least=1,
    )


@attrs.frozen(kw_only=True)
class DataLoader:
    """How samples become micro-batches. Other keys go to the loader itself."""

    loader: Target = key(
        "The loader class.",
        slot=Slot(
            "dataloaders",
            use="partial",
            given=("dataset", "sampler", "batch_sampler", "drop_last", "generator"),
            default="stateful",
        ),
    )
    batch_size: int = key(
        "Samples in a micro-batch, per data-parallel rank.", default=1, at_least=1
    )
    shuffle: bool = key(
        "A new order every epoch, drawn from the seed; false keeps the order of the data.",
        default=False,
    )
    shuffle_window: int | None = key(
        "Of a stream, samples that are mixed with each other by shuffle (4096 if left out).",
        default=None,
        at_least=2,
    )
    group_by_length: bool = key(
        "Samples of like lengths stand together, for less padding; needs shuffle.", default=False
    )
    collate_fn: Target = key(
        "What pads samples into a batch: a name, or a mapping with _target_ and arguments.",
        slot=Slot("collators", use="partial", given=("samples",), default="default_collater"),
    )


@attrs.frozen(kw_only=True)
class LRScheduler:
    """The learning rate over the run."""

    lr_decay_style: Literal["cosine", "linear", "constant", "inverse-square-root", "WSD"] = key(
        "The shape after warm-up.", default="constant"
    )
    min_lr: float = key("Where the decay ends.", default=0.0, at_least=0.0)
    warmup_steps: int = key(
        "Steps of linear warm-up; the first step runs at lr / warmup_steps.",
        default=0,
        at_least=0,
    )
    decay_steps: int | None = key(
        "WSD only: length of the final decay (a tenth of the run if left out).",
        default=None,
        at_least=1,
    )


@attrs.frozen(kw_only=True)
class DistEnv:
    """The process group."""

    backend: Literal["nccl", "gloo"] | None = key(
        "Communication backend; by default nccl on CUDA and gloo on the CPU.", default=None
    )
    timeout_minutes: float = key(
        "How long a collective may wait for the slowest rank.", default=10.0, at_least=0.1
    )
    watchdog_seconds: float | None = key(
        "After so long a rank that keeps others waiting is named, and one that has stopped ends "
        "the run; none watches nobody.",
        default=45.0,
        at_least=1,
    )


@attrs.frozen(kw_only=True)
class Rng:
    """Randomness: the sample order, dropout, and newly drawn weights."""

    target: Target = key(
        "Keeps the random state that training consumes.",
        slot=Slot("rng", given=("seed", "ranked", "rank"), default="stateful_rng"),
    )
    seed: int = key("The run's seed.", default=42, at_least=0)
    ranked: bool = key(
        "Other dropout on each data-parallel rank; never touches data order or initial weights.",
        default=True,
    )


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What is saved, where and how often. The folder is also the run's folder for its logs."""

    enabled: bool = key("Save at all.", default=True)
    checkpoint_dir: str = key("The run folder.", default="checkpoints/")
    model_save_format: Literal["safetensors", "torch_save"] = key(
        "Format of the weights.", default="safetensors"
    )
    save_consolidated: Literal[True] = key(
        "The saved model is always a plain transformers folder.", default=True
    )
    save_every_steps: int | None = key(
        "Save every N steps; the end of the run is always saved.", default=None, at_least=1
    )
    keep_last: int | None = key(
        "Keep only the newest N checkpoints; by default all.", default=None, at_least=1
    )
    keep_best: str | None = key(
        "A validation metric, such as loss or NAME/loss: its lowest checkpoint is kept and linked "
        "as `best`.",
        default=None,
    )
    async_save: bool | None = key(
        "Write beside the run, which waits only while the state is copied; by default on a GPU.",
        default=None,
    )


@attrs.frozen(kw_only=True)
class EarlyStopping:
    """Ends a run that no longer gets better."""

    metric: str = key("A validation metric: loss, or NAME/loss with several sets.", default="loss")
    patience: int = key(
        "Validations in a row that may pass without a new lowest value.", default=3, at_least=1
    )


@attrs.frozen(kw_only=True)
class GuardSettings:
    """Faults that are looked for while training; what each one does when it finds one."""

    non_finite: Literal["stop", "skip", "off"] = key(
        "A loss or gradient that is NaN or infinite; skip leaves the weights as they were.",
        default="stop",
    )
    no_supervised_tokens: Literal["stop", "off"] = key(
        "An optimizer step in which every label is masked.", default="stop"
    )
    loss_spike: Literal["warn", "stop", "off"] = key(
        "A loss far above the recent ones.", default="warn"
    )
    lost_updates: Literal["warn", "off"] = key(
        "Updates that the precision of the weights rounds away.", default="warn"
    )
    effective_batch: Literal["warn", "off"] = key(
        "A step that takes more samples than batch_size x grad_acc_steps, or than before a resume.",
        default="warn",
    )
    adapter_unchanged: Literal["stop", "warn", "off"] = key(
        "An adapter that has learned nothing by step 20, or when it is saved.", default="stop"
    )


@attrs.frozen(kw_only=True)
class FreezeConfig:
    """Which parts of the model keep their weights."""

    freeze_embeddings: bool = key(
        "Freeze the embeddings of the language model, and what shares them.", default=False
    )
    freeze_vision_tower: bool = key(
        "Freeze the vision tower, without its projector.", default=False
    )
    freeze_language_model: bool = key(
        "Freeze the language model, its embeddings included.", default=False
    )
    freeze_audio_tower: bool = key(
        "Freeze the audio tower.",
        default=False,
    )
    freeze_projector: bool = key(
        "Freeze what lies between the towers and the language model.", default=False
    )


@attrs.frozen(kw_only=True)
class PackedSequence:
    """Several samples in one row, which don't see each other. A batch_size of n is n such rows."""

    packed_sequence_size: int = key(
        "Tokens in a packed row; 0 does not pack.",
        default=0,
        at_least=0,
    )


@attrs.frozen(kw_only=True)
class PreProcessor:
    """Where a tokenizer or processor comes from, when it is not the model's own."""

    pretrained_model_name_or_path: str = key("Hub repository or local folder.", required=True)
    revision: str | None = key("Branch, tag or commit on the Hub.", default=None)


@attrs.frozen(kw_only=True)
class GenerationEval:
    """Answers a data set before and after training, prints some, and counts exact matches."""

    dataset: Target = key(
        "Held-out samples; the prompt is what comes before the first supervised token.",
        required=True,
        slot=Slot("datasets", example="squad"),
    )
    num_samples: int = key("Answers to print side by side.", default=5, at_least=0)
    max_new_tokens: int = key("Longest answer, in tokens.", default=64, at_least=1)
    batch_size: int = key("Prompts answered at once.", default=8, at_least=1)


@attrs.frozen(kw_only=True)
class Wandb:
    """Weights & Biases. Other keys (project, entity, name, save_dir, mode) go to the logger."""

    target: Target = key("The logger.", slot=Slot("loggers", given=("api_key",), default="wandb"))
    enable: bool = key("Log to Weights & Biases.", default=True)
    api_key: str | None = key("Used to log in, never saved.", default=None, secret=True)


@attrs.frozen(kw_only=True)
class Slurm:
    """Submission to a Slurm cluster. Every other key (nodes, time, ...) goes to the launcher."""

    target: Target = key(
        "The launcher.",
        slot=Slot("launchers", given=("wandb_key", "hf_token"), default="slurm"),
    )
    wandb_key: str | None = key(
        "WANDB_API_KEY of the job, never written.", default=None, secret=True
    )
    hf_token: str | None = key("HF_TOKEN of the job, never written.", default=None, secret=True)


@attrs.frozen(kw_only=True)
class Plugins:
    """Which installed plugins may be used: distributions, `name`, `kind:name`, `owner/name`."""

    disable: list[str] = key(
        "Treat these as if they were not installed.", default=attrs.Factory(list)
    )
    require: list[str] = key(
        "Refuse to start unless these can be used.", default=attrs.Factory(list)
    )


@attrs.frozen(kw_only=True)
class EveryLayer:
    """Activation checkpointing of some layers."""

    every: int = key("Every which layer is computed again.", required=True, at_least=1)


@attrs.frozen(kw_only=True)
class Compile:
    """torch.compile of each repeated layer, once for all of its kind."""

    enabled: Literal["auto", True, False] = key(
        "auto compiles where the run is long enough to repay it.", default=True
    )
    mode: Literal["default", "max-autotune-no-cudagraphs"] = key(
        "How hard the compiler looks for faster kernels.", default="default"
    )
    dynamic: bool | None = key(
        "Code for any length (true), for each length (false), or for any from the second on.",
        default=None,
    )
    fullgraph: bool = key("An error where a layer doesn't compile as a whole.", default=False)
    backend: str = key("The compiler that torch.compile gives its graphs to.", default="inductor")
    pad_to_multiple: int = key(
        "Rows are padded to a multiple of so many tokens, for fewer different lengths.",
        default=64,
        at_least=1,
    )


@attrs.frozen(kw_only=True)
class RunConfig:
    """A whole run. `model`, `dataset` and `step_scheduler` are required."""

    model: Target = key(
        "The model to tune.", required=True, slot=Slot("models", example=LLM_TARGET)
    )
    dataset: Target = key(
        "The training data.", required=True, slot=Slot("datasets", example="squad")
    )
    step_scheduler: StepScheduler = key("How long to train.", required=True)
    recipe: Recipe | None = key(
        "Accepted for files written for NeMo Automodel; fine-tuning is the only recipe.",
        default=None,
    )
    validation_dataset: Target | dict[str, Target] | None = key(
        "Held-out data for the validation loss: one set, or a mapping of names to sets.",
        default=None,
        slot=Slot("datasets", example="squad"),
    )
    early_stopping: EarlyStopping | None = key(
        "Ends a run that no longer gets better.", default=None
    )
    dataloader: DataLoader = key("Micro-batches for training.")
    validation_dataloader: DataLoader | None = key(
        "Micro-batches for validation; what it leaves out is taken from dataloader.", default=None
    )
    optimizer: Target = key(
        "The optimizer.",
        slot=Slot("optimizers", use="partial", given=("params",), default="adamw"),
    )
    lr_scheduler: LRScheduler = key("The learning rate over the run.")
    loss_fn: Target = key("The loss.", slot=Slot("losses", default="cross_entropy"))
    clip_grad_norm: float | None = key(
        "Largest gradient norm; none does not clip.", default=1.0, at_least=0.0
    )
    compile: Literal["auto", True, False] | Compile | None = key(
        "torch.compile of each layer: auto where the run is long enough to repay it, true, false, "
        "or a mapping with enabled, mode, dynamic, fullgraph, backend and pad_to_multiple.",
        default="auto",
    )
    activation_checkpointing: Literal["full", "selective", True, False] | EveryLayer | None = key(
        "Compute layers again in the backward pass instead of keeping their activations: none, "
        "full (or true), selective (keeps matrix products and attention), or {every: n} layers.",
        default=None,
    )
    tokenizer: PreProcessor | None = key("Another tokenizer than the model's own.", default=None)
    processor: PreProcessor | None = key("Another processor than the model's own.", default=None)
    distributed: Target | None = key(
        "How the run is spread over devices.",
        default=None,
        slot=Slot("distributed", example="fsdp2"),
    )
    dist_env: DistEnv = key("The process group.")
    rng: Rng = key("Randomness.")
    deterministic: bool = key(
        "Only algorithms that give the same bits every time; slower on a GPU.", default=False
    )
    checkpoint: Checkpoint = key("Saving.")
    guards: GuardSettings = key("Faults to look for while training.")
    generation_eval: GenerationEval | None = key("Answers before and after training.", default=None)
    peft: Target | None = key(
        "Adapters instead of full fine-tuning.",
        default=None,
        slot=Slot("peft", example="lora"),
    )
    freeze_config: FreezeConfig | None = key(
        "Parts of the model that do not train.",
        default=None,
    )
    packed_sequence: PackedSequence = key("Several samples in one row.")
    wandb: Wandb | None = key("Log to Weights & Biases.", default=None)
    loggers: list[Target] = key(
        "Where the figures of the run go besides its training.jsonl.",
        default=attrs.Factory(list),
        slot=Slot("loggers", given=("api_key",), example="tensorboard"),
    )
    plugins: Plugins = key("Which installed plugins may be used.")
    slurm: Slurm | None = key("Submit to Slurm.", default=None)
    launcher: Target | None = key(
        "Start the run somewhere else, by an installed launcher.",
        default=None,
        slot=Slot("launchers", given=("wandb_key", "hf_token"), example="slurm"),
    )


def target_field(cls: type) -> str | None:
    """The field of a section class that takes `_target_` and every key the class doesn't know."""
    for name in ("loader", "target"):
        if name in attrs.fields_dict(cls):
            return name
    return None
