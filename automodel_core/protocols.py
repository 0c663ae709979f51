"""What each kind of plugin must do. A plugin is an ordinary function or class that an entry point
names; nothing here needs to be imported or inherited.

The kinds, the entry-point group of each, and what a target of that kind returns when it is called
with the arguments of its YAML section:

    models         `automodel.models`        a ModelSource: a model that is known but not yet loaded
    datasets       `automodel.datasets`      a Dataset: tokenised samples, by index
    collators      `automodel.collators`     called with a list of samples; returns a Batch
    losses         `automodel.losses`        a Loss
    peft           `automodel.peft`          an Adapter
    optimizers     `automodel.optimizers`    a torch.optim.Optimizer; called with the parameters
    dataloaders    `automodel.dataloaders`   an iterable loader; called with the dataset first
    rng            `automodel.rng`           a StatefulRNG
    distributed    `automodel.distributed`   a parallel manager
    loggers        `automodel.loggers`       a Logger

A target that declares a parameter with one of the names in SUPPLIED, and whose YAML leaves it out,
is given it by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.processing_utils import ProcessorMixin

# What the engine gives to any target that asks for it by parameter name.
SUPPLIED: Mapping[str, str] = {
    "tokenizer": "the run's tokenizer (the model's own unless a `tokenizer:` section says so)",
    "processor": "the run's processor, for models that see or hear; None for text models",
    "model_config": "the model's transformers configuration, read before its weights",
    "seed": "the run's seed, `rng.seed`",
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

    An optional attribute `notes: Sequence[str]` holds lines to print once at the start, such as how
    many rows were dropped and why.

    The target that makes it may have an attribute `write_prompt: Callable[[str], str]`: from what a
    user types to the text that stands before the answer in its samples, where the tokenizer has no
    chat template. `automodel chat` and `automodel generate` ask as training did by it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Collator(Protocol):
    """Turns samples into one padded micro-batch of `[batch, sequence]` tensors.

    Returns at least `input_ids`, `labels`, `attention_mask` and `position_ids`. Positions restart
    at 0 with every sample's first real token, on whichever side the padding is.
    """

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch: ...


class Loss(Protocol):
    """The sum of the token losses of one micro-batch; the engine divides by the step's tokens.

    Attributes:
        input: What it works on. "logits": called as `loss(logits, labels)` with logits
            `[batch, sequence, vocabulary]`. "hidden_states": called as
            `loss(hidden_states, labels, head)` with hidden states `[batch, sequence, hidden]` and
            `head`, the function from hidden states to logits.

    Labels `[batch, sequence]` come already shifted; IGNORE_INDEX marks unsupervised positions.
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

    The engine calls `apply` once, on the whole model with its weights read, before anything wraps
    or shards it; and `load` after it when a run goes on from a checkpoint. All methods are given
    the model itself, not a wrapper.

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
        """Called after training, before a save.

        Raises:
            GuardStop: Nothing has changed since `apply`, or something trains that should not.
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
