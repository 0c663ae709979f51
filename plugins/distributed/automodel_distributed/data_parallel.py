"""DDP: a copy of the model on every rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel


class Replica(nn.Module):
    """What DDP wraps: a model that is called as it is, or through a function that calls its parts.

    DDP only sees what goes through its own forward; a loss on hidden states calls the backbone and
    the head apart.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, compute: Callable[..., Any] | None = None, **named: Any) -> Any:
        return (compute or self.model)(*inputs, **named)


def replicate(model: PreTrainedModel, group: Any) -> DistributedDataParallel:
    """Sum gradients in buckets while the backward pass goes on.

    Gradients are views of the buckets, which saves a copy of them. Buffers are left alone: those of
    language models are constants, and a broadcast would overwrite what a rank counts for itself.

    Parameters without a gradient are looked for in models that take more than text, which costs a
    walk through the graph in each pass: vision towers have layers that are never used (a pooling
    head, what lies behind the layer whose features are taken), and samples may have no image.
    """
    more_than_text = model.config is not model.config.get_text_config()
    with warnings.catch_warnings():  # what replaces the flag still broadcasts once
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            Replica(model),
            process_group=group,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=more_than_text,
        )
