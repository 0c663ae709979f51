"""One optimizer step's arithmetic: shift, forward, backward.

The loss of a step is the sum over its supervised tokens divided by their number, over all
micro-batches (and ranks), so it does not depend on how the samples were laid out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

import attrs
import torch

from automodel_core.protocols import IGNORE_INDEX, Batch, Loss
from automodel_core.train.precision import PrecisionPlan


@attrs.frozen
class MicroBatch:
    """A batch with its labels shifted, on the device, and what was counted before the copy.

    Attributes:
        inputs: What the model is called with, tensors of `[batch, sequence, ...]`.
        labels: `[batch, sequence]`; position i holds the token that position i predicts.
        samples: Rows in the batch.
        tokens: Real (not padded) tokens.
        label_tokens: Supervised tokens.
    """

    inputs: Batch
    labels: torch.Tensor
    samples: int
    tokens: int
    label_tokens: int


def shift_labels(batch: Batch) -> torch.Tensor:
    """Labels aligned with the positions that predict them.

    Position i is given the label of position i + 1, unless that one begins a document: a document's
    first token is predicted by nothing in it.
    """
    labels = batch["labels"]
    shifted = torch.full_like(labels, IGNORE_INDEX)
    follows = batch["position_ids"][:, 1:] != 0
    shifted[:, :-1] = torch.where(follows, labels[:, 1:], IGNORE_INDEX)
    return shifted


def prepare_micro_batch(batch: Batch, device: torch.device) -> MicroBatch:
    """Shift and count on the CPU, where counting costs no synchronisation, then copy."""
    labels = shift_labels(batch)
    return MicroBatch(
        inputs={
            name: tensor.to(device, non_blocking=True)
            for name, tensor in batch.items()
            if name not in ("labels", "sample_id")
        },
        labels=labels.to(device, non_blocking=True),
        samples=len(labels),
        tokens=int(batch["attention_mask"].sum()),
        label_tokens=int((labels != IGNORE_INDEX).sum()),
    )


@attrs.frozen
class Objective:
    """From a micro-batch to the sum of its token losses.

    Attributes:
        model: Called with the micro-batch's inputs.
        loss: The YAML's `loss_fn`.
        precision: Gives the autocast context.
        device: Where the model is.
        hidden_states: For a loss on hidden states: the model up to its head, and the head.
    """

    model: torch.nn.Module
    loss: Loss
    precision: PrecisionPlan
    device: torch.device
    hidden_states: tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] | None = None
    takes_positions: bool = attrs.field(init=False)

    @takes_positions.default
    def _whether_the_model_takes_positions(self) -> bool:
        parameters = inspect.signature(self.model.forward).parameters
        return "position_ids" in parameters or any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )

    def loss_sum(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The float32 sum of the token losses, not divided by anything."""
        inputs = dict(micro_batch.inputs)
        if not self.takes_positions:  # models with relative or no positions, such as Mamba
            del inputs["position_ids"]
        with self.precision.autocast(self.device):
            if self.hidden_states is None:
                logits = self.model(**inputs, use_cache=False).logits
                return self.loss(logits, micro_batch.labels)
            backbone, head = self.hidden_states
            return self.loss(backbone(**inputs), micro_batch.labels, head)


def accumulate_gradients(
    objective: Objective,
    micro_batches: Sequence[MicroBatch],
    scaler: torch.amp.GradScaler,
) -> torch.Tensor:
    """Forward and backward of a whole step; leaves the step's gradient in the parameters.

    Each micro-batch has its own backward, already divided by the step's supervised tokens.

    Returns:
        The step's loss, a float32 scalar still on the device.
    """
    label_tokens = sum(micro_batch.label_tokens for micro_batch in micro_batches)
    total = torch.zeros((), device=objective.device)
    for micro_batch in micro_batches:
        loss = objective.loss_sum(micro_batch) / label_tokens
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


@torch.no_grad()
def evaluate(objective: Objective, micro_batches: Iterable[MicroBatch]) -> tuple[float, int]:
    """The mean token loss over all of `micro_batches` together, and their supervised tokens."""
    total, label_tokens = torch.zeros((), dtype=torch.float64, device=objective.device), 0
    for micro_batch in micro_batches:
        total += objective.loss_sum(micro_batch)
        label_tokens += micro_batch.label_tokens
    return (total.item() / label_tokens if label_tokens else float("nan")), label_tokens
