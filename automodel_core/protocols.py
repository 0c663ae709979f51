"""What each kind of plugin must do. A plugin is an ordinary function or class that an entry point
names; nothing here needs to be imported or inherited.

The kinds, the entry-point group of each, and what a target of that kind returns when it is called
with the arguments of its YAML section:

    models         `automodel.models`        a ModelSource: a model that is known but not yet loaded
    datasets       `automodel.datasets`      a Dataset: tokenised samples, by index; or a Stream of
                                             them, one after another
    collators      `automodel.collators`     called with a list of samples; returns a Batch
    losses         `automodel.losses`        a Loss
    peft           `automodel.peft`          an Adapter
    optimizers     `automodel.optimizers`    a torch.optim.Optimizer; called with the parameters
    dataloaders    `automodel.dataloaders`   an iterable loader; called with the dataset first
    rng            `automodel.rng`           a StatefulRNG
    distributed    `automodel.distributed`   a ParallelManager
    loggers        `automodel.loggers`       a Logger
    launchers      `automodel.launchers`     a Launcher

A target that declares a parameter with one of the names in SUPPLIED, and whose YAML leaves it out,
is given it by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.processing_utils import ProcessorMixin

T = TypeVar("T")
Options = TypeVar("Options", covariant=True)

# What the engine gives to any target that asks for it by parameter name.
SUPPLIED: Mapping[str, str] = {
    "tokenizer": "the run's tokenizer (the model's own unless a `tokenizer:` section says so)",
    "processor": "the run's processor, for models that see or hear; None for text models",
    "model_config": "the model's transformers configuration, read before its weights",
    "seed": "the run's seed, `rng.seed`",
    "packed": "whether rows hold several documents, by `packed_sequence`; for models only",
}

# The label of a position that is not supervised, as everywhere in PyTorch and transformers.
IGNORE_INDEX = -100

Batch = dict[str, "torch.Tensor"]


class ModelSource(Protocol):
    """A model before its weights are read: enough to check a run, and the way to load it.

    Attributes:
        name: Hub repository, folder or file, as a user would write it.
        revision: The resolved commit for a Hub model, else None.
        config: The transformers configuration.
        torch_dtype: What the YAML asks for: a dtype, or "auto" (the precision plan decides).
        weight_bytes: Size of the stored weights, read from their headers; None if there are none.
        parameter_count: Parameters of the model, counted without reading weights.
        choices: What the YAML left to be chosen by the source, in lines to print once. May be left
            out.

    An optional method `running() -> AbstractContextManager` gives what is set for this process
    while the model runs, such as the order in which kernels are tried.
    """

    name: str
    revision: str | None
    config: PretrainedConfig
    torch_dtype: torch.dtype | Literal["auto"]
    weight_bytes: int | None
    parameter_count: int

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model. Raises UserError if it has none."""
        ...

    def load_processor(self) -> ProcessorMixin | None:
        """The processor of a model that sees or hears; None for a text model."""
        ...

    def empty_model(self) -> PreTrainedModel:
        """The model without weights, on PyTorch's meta device: its modules and their shapes, for
        whatever only looks at it. It needs no memory."""
        ...

    def unread_model(
        self, dtype: torch.dtype, weights: Path | None = None
    ) -> tuple[PreTrainedModel, Path] | None:
        """For a model that is sharded before it is read: the model on the meta device, as
        `load_model` would give it but for its weights, and the folder of safetensors with these.
        None if they have to be read whole.

        Args:
            dtype: The precision plan's choice.
            weights: As for `load_model`.
        """
        ...

    def load_model(
        self, dtype: torch.dtype, device: torch.device, weights: Path | None = None
    ) -> PreTrainedModel:
        """Read (or, for a model without weights, draw) the parameters.

        Args:
            dtype: The precision plan's choice; the YAML's wish went into the plan.
            device: Where to put them.
            weights: A folder that holds a later state of this model, to take instead of its own.
        """
        ...

    def check_vocabulary(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError if the tokenizer has tokens that the model doesn't embed, unless the YAML
        allows to add rows for them."""
        ...


class Sample(TypedDict, total=False):
    """One training sample as a dataset emits it, before padding.

    `labels` is aligned with `input_ids` (the engine shifts, once) and holds IGNORE_INDEX where
    nothing is to be learned. Further keys travel to the collator untouched.
    """

    input_ids: list[int]
    labels: list[int]


class Dataset(Protocol):
    """Map-style: a fixed length and samples by index. The engine owns the order.

    One that is mixed of several may have `sources`, their names (or a mapping by name), and
    `source_of(index) -> str`: the log and `automodel data show` count by them.

    An optional attribute `notes: Sequence[str]` holds lines to print once at the start, such as how
    many rows were dropped and why.

    An optional method `identity(index: int) -> bytes` says what tells a sample from others. A set
    whose samples have no `input_ids` and `labels` yet, because its collator makes them, must have
    it: a checkpoint remembers by it what it was trained on.

    The target that makes it may have an attribute `write_prompt: Callable[[str], str]`: from what a
    user types to the text that stands before the answer in its samples, where the tokenizer has no
    chat template. `automodel chat` and `automodel generate` ask as training did by it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Portion(NamedTuple):
    """What became of some consecutive rows of a stream.

    Attributes:
        samples: In the order of the rows, by index.
        lengths: Tokens in each.
        counts: Rows that were cut or left out, by what is to be told of them.
        first_bad: What is wrong with the first row that can't be used, if one was skipped.
        sources: The source of each sample, of a stream that is mixed of several.
    """

    samples: Sequence[Sample]
    lengths: Sequence[int]
    counts: Mapping[str, int]
    first_bad: str
    sources: Sequence[str]


class Stream(Protocol):
    """Samples in one order, however many there are: they are made as they are asked for.

    It is passed through any number of times, by several processes at once that share the work, and
    gives the same each time. It can be pickled.

    Attributes:
        sources: The names of the sources that it is mixed of; none if it isn't.
    """

    sources: Sequence[str]

    def portions(self, first: int, step: int) -> Iterator[Portion]:
        """The portions `first`, `first + step`, `first + 2 * step`, ... of one pass, from 0.

        Raises:
            UserError: A row can't be used, and isn't to be skipped.
        """
        ...


class WithOptions(Protocol[Options]):
    """What a decorator returns that makes a target of an author's function. The target takes the
    function's parameters and, by keyword, the fields of the class `Options`.

    A decorator whose return annotation is `WithOptions[SomeClass]` keeps its targets readable from
    source, so that a YAML file is checked against them without importing anything.
    """

    def __call__(self, *args: Any, **options: Any) -> Any: ...


class Collator(Protocol):
    """Turns samples into one padded micro-batch of `[batch, sequence]` tensors.

    Returns at least `input_ids`, `labels`, `attention_mask` and `position_ids`. Positions restart
    at 0 with every sample's first real token, on whichever side the padding is. The engine adds
    `sample_id`, `[samples]`: their numbers in the data set, in the order given.
    """

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch: ...


class Loss(Protocol):
    """The sum of the token losses of one micro-batch; the engine divides by the step's tokens.

    Attributes:
        input: What it works on. "logits": called as `loss(logits, labels)` with logits
            `[batch, sequence, vocabulary]` and labels `[batch, sequence]`. "hidden_states": called
            as `loss(hidden_states, labels, head)` with hidden states `[rows, hidden]` and labels
            `[rows]` of the supervised positions, among few others, and `head`, the function from
            hidden states to logits (`automodel_core.train.head.Head`).
        sharded_logits: Whether it takes logits that lie over ranks by their vocabulary: a DTensor
            of one mesh dim, sharded in its last dim (`automodel_core.vocabulary` computes on
            them). May be left out: logits are whole then, gathered where the model shards them.
        on_logits: For "hidden_states": another loss, on logits, for models that can't be taken
            apart there. May be left out: they are refused then.

    Labels come already shifted; IGNORE_INDEX marks unsupervised positions.
    Returns a float32 scalar, the sum (not the mean) over supervised positions.
    """

    input: Literal["logits", "hidden_states"]

    def __call__(self, *args: Any) -> torch.Tensor: ...


class Selection(NamedTuple):
    """What an adapter changes in a model.

    Attributes:
        modules: The whole dotted names of the modules that it adapts or trains.
        trainable: How many parameters train.
        lines: The choice in words, for the terminal.
    """

    modules: tuple[str, ...]
    trainable: int
    lines: tuple[str, ...]


class Merger(Protocol):
    """What a saved adapter makes of its base model's weights, one tensor at a time.

    Attributes:
        names: The whole names of the model's tensors that it changes. All that the adapter has
            learned is in these.
    """

    names: frozenset[str]

    def merge(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The tensor that a model without the adapter needs to compute the same.

        Args:
            name: One of `names`.
            base: The base model's tensor of that name, as it is stored; left unchanged.

        Returns:
            float32, of the shape of `base`; embeddings may have got more rows.
        """
        ...


class Adapter(Protocol):
    """Trains something small in, or beside, a model that stays as it is.

    The engine calls `apply` once, on the whole model, before anything wraps or shards it; and
    `load` after it when a run goes on from a checkpoint. The model's weights are read by then,
    except in a model that is sharded, if the adapter does without them. All methods are given the
    model itself, not a wrapper.

    Attributes:
        dtype: What trains is held in this; the precision plan shows it.
    """

    dtype: torch.dtype

    def select(self, model: PreTrainedModel) -> Selection:
        """What `apply` would do. The model may be without weights (on PyTorch's meta device).

        Raises:
            UserError: Nothing in the model fits what the YAML asks for.
        """
        ...

    def needs_weights(self, model: PreTrainedModel) -> bool:
        """Whether `apply` reads weights of the model. If not, the model may be on the meta device,
        and its weights are read afterwards; what `apply` adds must have its values then.

        May be left out: weights are read first.
        """
        ...

    def apply(self, model: PreTrainedModel) -> Selection:
        """Freeze the model and add what trains, drawn from the run's seed; exactly that requires a
        gradient afterwards."""
        ...

    def parameter_groups(self, model: PreTrainedModel, lr: float) -> list[dict[str, Any]]:
        """All that trains, as an optimizer takes it: groups with `params` and `lr`, and whatever
        else differs between them."""
        ...

    def state(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, by the names that the file gives it. Not copied."""
        ...

    def save(
        self,
        model: PreTrainedModel,
        folder: Path,
        state: Mapping[str, torch.Tensor],
        base_name: str,
        revision: str | None,
    ) -> None:
        """Write a folder that other programs open.

        Args:
            model: Says what was adapted; its tensors may have moved on since `state`.
            folder: Where to; it may not exist yet.
            state: What `state` gave, copied since.
            base_name: The model that was adapted, as a user would write it.
            revision: Its resolved commit, for a Hub model.
        """
        ...

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Take over what `save` wrote, to the last bit, after `apply`.

        Raises:
            UserError: The folder holds something else than this adapter.
        """
        ...

    def check(self, model: PreTrainedModel) -> None:
        """Called after some steps, and before every save.

        Raises:
            GuardStop: Nothing has changed since `apply`, or something trains that should not. The
                first is named `adapter_unchanged`, which the YAML can switch; all others stop the
                run.
        """
        ...

    def merger(self, model: PreTrainedModel, folder: Path) -> Merger:
        """For `automodel merge`: what `save` wrote, as weights of the base model. An adapter that
        can't be expressed so leaves this method out.

        Args:
            model: The base model without weights (on PyTorch's meta device), not adapted.
            folder: What `save` wrote.

        Raises:
            UserError: The folder holds something that doesn't fit the model.
        """
        ...


class Sizes(NamedTuple):
    """How many ranks share what; the product is the number of processes.

    Attributes:
        dp_replicate: Copies of the model; each is given other samples.
        dp_shard: Ranks that share the parameters of a copy; each is given other samples.
        cp: Ranks that share every sequence (context parallelism); parameters are spread over them
            as over `dp_shard`.
        tp: Ranks that share every layer (tensor parallelism) and see the same samples.
    """

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int


class Precision(Protocol):
    """The dtypes of a run, as far as a manager needs to know them.

    Attributes:
        parameters: Of what trains, of its gradients and of their reduction.
        compute: Of matrix products.
        frozen: Of the model if only adapters train; None if it trains itself.
        weights: Of the model's own weights.
    """

    parameters: torch.dtype
    compute: torch.dtype
    frozen: torch.dtype | None

    @property
    def weights(self) -> torch.dtype: ...


class ParallelManager(Protocol):
    """Spreads a run over processes. One manager serves one run.

    The engine builds the mesh from `sizes` and deals the samples; the manager makes the model
    train on it, with the gradient of the sum of all ranks' losses. In one process it does nothing,
    at no cost.

    The mesh has the dims of Sizes, all four, some of them of size 1, and `dp_shard_cp`, which is
    `dp_shard` and `cp` flattened.

    Attributes:
        sequence_multiple: The rows of a micro-batch must be padded to a multiple of this; 1 unless
            the manager deals positions to ranks.
        before_weights: Whether it shards a model that is still on the meta device, so that each
            rank reads its own part of the weights.
        offloads: Whether parameters stay in the host's memory.
        compiles: Whether it may spread a model whose layers are compiled later, where they stand.
            May be left out: it may.
    """

    sequence_multiple: int
    before_weights: bool
    offloads: bool

    def sizes(self, world_size: int) -> Sizes:
        """How that many processes are used.

        Raises:
            UserError: The sizes don't multiply to `world_size`; the message has the arithmetic.
        """
        ...

    def parallelize(
        self, model: PreTrainedModel, mesh: DeviceMesh | None, precision: Precision
    ) -> torch.nn.Module:
        """Spread the model, in place or in a wrapper around it. Its parameters keep their names
        in the model itself, though they may become other objects (DTensors).

        Called once, after freezing and adapters and before the optimizer. In one process there is
        no mesh.

        Raises:
            UserError: The model can't be spread in this way, with the reason.
        """
        ...

    def one_pass(self, model: torch.nn.Module, compute: Callable[..., T]) -> Callable[..., T]:
        """`compute` as one forward pass of what `parallelize` returned.

        For losses that call parts of the model apart, such as its backbone and then its head on a
        chunk of the tokens at a time: all parameters are at hand while `compute` runs, and the
        gradient of each is reduced once. What it returns must be what backward starts from.
        """
        ...

    def part(self, whole: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        """This rank's part of the positions of `[batch, sequence]`, on any device.

        Only asked of managers whose sizes have `cp` above 1.
        """
        ...

    def on_a_part(
        self, token_losses: Callable[..., torch.Tensor], mesh: DeviceMesh
    ) -> Callable[..., torch.Tensor]:
        """`token_losses`, given inputs and shifted labels of whole sequences, computed on this
        rank's part of their positions. Those of a `cp` group add up to the whole's. What else it
        is called with is handed on.

        Only asked of managers whose sizes have `cp` above 1.

        Raises:
            UserError: From the returned function: the inputs can't be dealt to ranks.
        """
        ...

    def gradient_divisor(self, mesh: DeviceMesh) -> int:
        """What the reduction divides the sum of the ranks' gradients by; the engine multiplies the
        loss by it, exactly once."""
        ...

    def micro_batch(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """The context of one micro-batch's forward and backward passes. After a step's `last`, the
        gradients are those of all ranks together; before it they need not be."""
        ...

    def clip(
        self, parameters: Iterable[torch.nn.Parameter], max_norm: float | None
    ) -> torch.Tensor:
        """The 2-norm of the whole model's gradient, a scalar that is equal on all ranks.

        Gradients are scaled down in place where it is above `max_norm`. With None it is only
        measured; the optimizer may then clip by it in its update.
        """
        ...


class StatefulRNG(Protocol):
    """Owns the random state that training consumes (dropout); never the sample order."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Logger(Protocol):
    """Takes the figures of a run somewhere, besides the `training.jsonl` that every run writes.

    It is built before weights are read: what it lacks, such as a package or a login, it says there
    by raising UserError. From `start` on it cannot harm the run: one that raises is dropped, with
    one line in the log. It is told on rank 0 alone and must return soon.
    """

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        """Training begins, or goes on.

        Args:
            folder: The run folder, for what a resumed run must find again.
            config: The effective configuration as a plain tree, secrets as placeholders.
            step: Optimizer steps done before, by the run that this one resumes. Whatever was
                logged after it will be logged again.
        """
        ...

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step is done: what `training.jsonl` holds of it."""
        ...

    def log_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The validation sets have been gone through: what `validation.jsonl` holds of it."""
        ...

    def finish(self, state: Literal["finished", "stopped", "failed"]) -> None:
        """The run is at its end; "stopped" is by a signal, and can be resumed."""
        ...


class Job(NamedTuple):
    """A run that is to be started somewhere else.

    Attributes:
        argv: The command line after the program's name, to be started again there:
            `python -m automodel_core *argv`. No secret stands in it.
        dry_run: Only print what would be submitted; nothing may run, since nobody has agreed yet.
        goes_on: Whether a run that was stopped can be started again and go on.
        from_environment: The arguments of the launcher, as paths, whose values came from `${NAME}`.
            They may be secret: what they are is for the job's environment, not for a file.
    """

    argv: tuple[str, ...]
    dry_run: bool
    goes_on: bool
    from_environment: frozenset[tuple[str | int, ...]]


class Launcher(Protocol):
    """Starts a run somewhere else, such as on a cluster, instead of in this process.

    The YAML's `launcher:` section (`slurm:` for Slurm) or `--launcher` names it. It is asked before
    anything is imported or loaded, and not by a rank that torchrun has started.

    On every node of several it starts the command with `--nnodes N --nproc-per-node M
    --rdzv-endpoint HOST:PORT` behind it. That one ends with 75 if the run was stopped by SIGINT,
    SIGTERM or SIGUSR1 and saved. A launcher that may begin a run again sets AUTOMODEL_LAUNCH for it
    to a text that stays the same, so that `--fresh` opens one folder only.

    An optional attribute `code: frozenset[str]` names the arguments that can make it run any
    program, such as commands, images and environment variables. Where a file sets one of them,
    nothing is launched unless the reader agrees with `--allow SECTION.ARGUMENT`.
    """

    def launch(self, job: Job) -> int | None:
        """Start it, or print what would be.

        Returns:
            The exit code of this process; None to let the run go on here, where this is already
            the place.

        Raises:
            UserError: It can't be started like this.
        """
        ...
