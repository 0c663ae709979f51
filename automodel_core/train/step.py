"""One optimizer step's arithmetic: shift, forward, backward.

The loss of a step is the sum over its supervised tokens divided by their number, over all
micro-batches (and ranks), so it does not depend on how the samples were laid out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Batch, Loss
from automodel_core.train.documents import Teller, masks_left_out, teller
from automodel_core.train.head import Split, check_head, split_head
from automodel_core.train.packed_documents import of_tokens
from automodel_core.train.precision import PrecisionPlan
from automodel_core.train.rows import at_rows, on_host, supervised_rows
from automodel_core.train.world import World
from automodel_core.vocabulary import leaving_logits_sharded


@attrs.frozen
class MicroBatch:
    """A batch with its labels shifted, on the device, and what was counted before the copy.

    Attributes:
        inputs: What the model is called with, tensors of `[batch, sequence, ...]`.
        labels: `[batch, sequence]`; position i holds the token that position i predicts.
        samples: Rows in the batch.
        tokens: Real (not padded) tokens.
        label_tokens: Supervised tokens.
        rows: For losses on hidden states: the positions that they are computed at, as
            `supervised_rows` gives them; None for all.
    """

    inputs: Batch
    labels: torch.Tensor
    samples: int
    tokens: int
    label_tokens: int
    rows: torch.Tensor | None = None


def shift_labels(batch: Batch) -> torch.Tensor:
    """Labels aligned with the positions that predict them.

    Position i is given the label of position i + 1, unless that one begins a document: a document's
    first token is predicted by nothing in it.
    """
    labels, positions = on_host(batch["labels"]), on_host(batch["position_ids"])
    shifted = np.full_like(labels, IGNORE_INDEX)
    np.copyto(shifted[:, :-1], labels[:, 1:], where=positions[:, 1:] != 0)
    return torch.from_numpy(shifted).to(batch["labels"].device)


def every_row(labels: torch.Tensor) -> None:
    """For losses on logits, which models compute at all positions."""


def prepare_micro_batch(
    batch: Batch,
    device: torch.device,
    multiple: int = 1,
    rows_of: Callable[[torch.Tensor], torch.Tensor | None] = every_row,
    documents: Teller | None = None,
) -> MicroBatch:
    """Shift and count on the CPU, where counting costs no synchronisation, then copy.

    Args:
        batch: As collated.
        device: Where the model is.
        multiple: Rows are padded to a multiple of so many tokens.
        rows_of: From the shifted labels to the positions that the loss is computed at.
        documents: Tells attention where documents begin, in place of masks that the model makes.
    """
    if batch["labels"].shape[1] % multiple:
        batch = padded(batch, multiple)
    labels = shift_labels(batch)
    put = partial(on_device, device=device)
    told = documents(batch, put) if documents else {}
    left_out = {"labels", "sample_id", *(told or masks_left_out(batch))}
    inputs = {name: put(each) for name, each in batch.items() if name not in left_out}
    return MicroBatch(
        inputs=inputs | told,
        labels=put(labels),
        samples=len(labels),
        tokens=int(on_host(batch["attention_mask"]).sum()),
        label_tokens=np.count_nonzero(on_host(labels) != IGNORE_INDEX),
        rows=put(rows_of(labels)),
    )


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor, or lists of them such as images of unequal sizes, on the device.

    It goes through pinned memory, which PyTorch keeps for the next batch: for a larger copy from
    elsewhere the host would wait until the device has done all that it was asked before."""
    if isinstance(value, torch.Tensor):
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)
    if isinstance(value, list | tuple):
        return type(value)(on_device(each, device) for each in value)
    return value


def padded(batch: Batch, multiple: int) -> Batch:
    """Rows made longer on the right, in all that is of tokens."""
    more = (0, -batch["labels"].shape[1] % multiple)
    fill = {"labels": IGNORE_INDEX}
    return batch | {
        name: torch.nn.functional.pad(batch[name], more, value=fill.get(name, 0))
        for name in of_tokens(batch)
    }


@attrs.frozen
class Objective:
    """From a micro-batch to the sum of its token losses, on a model that may be spread over ranks.

    Attributes:
        token_losses: Called with the model's inputs, the labels and the rows; the sum of the token
            losses.
        precision: Gives the autocast context.
        device: Where the model is.
        world: The processes that the model is spread over.
        spread: What `ParallelManager.parallelize` returned.
        takes_positions: Whether the model is given `position_ids`.
        takes_pixels: Whether it can be given images.
        rows_of: From shifted labels to the positions that the loss is computed at.
        multiple: Rows are padded to a multiple of so many tokens.
        documents: Tells attention where documents begin; None leaves that to the model's masks.
    """

    token_losses: Callable[[Batch, torch.Tensor, torch.Tensor | None], torch.Tensor]
    precision: PrecisionPlan
    device: torch.device
    world: World
    spread: torch.nn.Module
    takes_positions: bool
    takes_pixels: bool
    rows_of: Callable[[torch.Tensor], torch.Tensor | None]
    multiple: int
    documents: Teller | None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        spread: torch.nn.Module,
        loss: Loss,
        precision: PrecisionPlan,
        device: torch.device,
        world: World,
        multiple: int = 1,
    ) -> Objective:
        """The YAML's loss on what it works on: logits, or hidden states and the head after them.

        Raises:
            UserError: The loss works on hidden states, and this model can't be split there.
        """
        loss, parts = parts_for(loss, model, partial(world.manager.one_pass, spread))
        sharded, rows_of = getattr(loss, "sharded_logits", False), every_row
        if parts is not None:
            head = attrs.evolve(parts.head, leaves_sharded=sharded)
            rows_of = supervised_rows

            def of_parts(
                inputs: Batch, labels: torch.Tensor, rows: torch.Tensor | None
            ) -> torch.Tensor:
                return loss(*at_rows(parts.backbone(**inputs), labels, rows), head)

            token_losses = world.manager.one_pass(spread, of_parts)
        else:
            forward = leaving_logits_sharded(spread) if sharded else spread

            def token_losses(inputs: Batch, labels: torch.Tensor, rows: None) -> torch.Tensor:
                return loss(forward(**inputs, use_cache=False).logits, labels)

        if world.sizes.cp > 1:
            token_losses = world.manager.on_a_part(token_losses, world.mesh)
            rows_of = rows_of_part(rows_of, world)
        return cls(
            token_losses,
            precision,
            device,
            world,
            spread,
            takes_positions(model),
            "pixel_values" in inspect.signature(model.forward).parameters,
            rows_of,
            math.lcm(multiple, world.manager.sequence_multiple),
            teller(model),
        )

    def prepare(self, batch: Batch) -> MicroBatch:
        """A collated batch as this model takes it."""
        return prepare_micro_batch(batch, self.device, self.multiple, self.rows_of, self.documents)

    def loss_sum(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The float32 sum of the token losses, not divided by anything."""
        inputs = dict(micro_batch.inputs)
        if not self.takes_positions:
            inputs.pop("position_ids", None)
        with self.precision.autocast(self.device):
            return self.token_losses(inputs, micro_batch.labels, micro_batch.rows)


def parts_for(
    loss: Loss, model: PreTrainedModel, one_pass: Callable[[Callable], Callable]
) -> tuple[Loss, Split | None]:
    """The parts that a loss on hidden states needs, or what it leaves models without them to.

    Raises:
        UserError: It leaves them to nothing.
    """
    if loss.input == "logits":
        return loss, None
    try:
        parts = split_head(model)
        check_head(model, parts, one_pass)
    except UserError:
        on_logits = getattr(loss, "on_logits", None)
        if on_logits is None:
            raise
        return on_logits, None
    return loss, parts


def rows_of_part(
    rows_of: Callable[[torch.Tensor], torch.Tensor | None], world: World
) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """`rows_of` among this rank's positions, where ranks share every sequence."""
    return lambda labels: rows_of(world.manager.part(labels, world.mesh))


def require_same_passes(objective: Objective, micro_batches: Sequence[MicroBatch]) -> None:
    """See that ranks which gather the layers of a vision tower from each other all pass through it,
    or none: else those that do would wait for the others without end.

    Raises:
        UserError: Some do.
    """
    world = objective.world
    if world.alone or not (world.manager.before_weights and objective.takes_pixels):
        return
    seeing = world.sum(["pixel_values" in each.inputs for each in micro_batches])
    if any(0 < ranks < world.data_ranks for ranks in seeing):
        raise UserError(
            "Some ranks have images in a micro-batch and others have none. Ranks that share the "
            "layers of a vision tower must all pass through it.",
            fix="write distributed: {_target_: ddp}, or train on samples that all have images",
            path=("distributed",),
        )


def takes_positions(model: torch.nn.Module) -> bool:
    """Some models have relative positions or none, such as Mamba."""
    parameters = inspect.signature(model.forward).parameters
    return "position_ids" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def accumulate_gradients(
    objective: Objective,
    micro_batches: Sequence[MicroBatch],
    label_tokens: float,
    scaler: torch.amp.GradScaler,
) -> torch.Tensor:
    """Forward and backward of a whole step; leaves the step's gradient in the parameters.

    Each micro-batch has its own backward, already divided by the step's supervised tokens.

    Args:
        objective: The loss.
        micro_batches: This rank's.
        label_tokens: Supervised tokens of the step on all ranks.
        scaler: Scales the loss for float16.

    Returns:
        The step's loss over all ranks, float32 and still on the device, first of what
        `World.loss_on_device` tells.
    """
    world, total = objective.world, torch.zeros((), device=objective.device)
    require_same_passes(objective, micro_batches)
    for number, micro_batch in enumerate(micro_batches, start=1):
        with world.manager.micro_batch(objective.spread, last=number == len(micro_batches)):
            loss = objective.loss_sum(micro_batch) / label_tokens
            scaler.scale(loss * world.gradient_divisor).backward()
        total += loss.detach()
    return world.loss_on_device(total)


@torch.no_grad()
def evaluate(objective: Objective, micro_batches: Iterable[MicroBatch]) -> tuple[float, int]:
    """The mean token loss over all of `micro_batches` of all ranks, and their supervised tokens."""
    total, label_tokens = torch.zeros((), dtype=torch.float64, device=objective.device), 0
    for micro_batch in micro_batches:
        require_same_passes(objective, [micro_batch])
        total += objective.loss_sum(micro_batch)
        label_tokens += micro_batch.label_tokens
    world = objective.world
    loss_sum, tokens = world.sum([total.item() * world.sizes.cp, label_tokens])
    return (loss_sum / tokens if tokens else float("nan")), int(tokens)
