"""What a data set that is streamed can't go with, as far as the configuration alone tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from automodel_core.arguments import Finding
from automodel_core.config.schema import RunConfig, Target

# These go by the share of the run that is done.
NEED_STEPS = ("cosine", "linear", "WSD")


def is_streamed(target: Any) -> bool:
    """Whether a data set's section asks to stream it, or a source that it is mixed of."""
    if not isinstance(target, Target):
        return False
    sources = target.arguments.get("sources")
    inner = sources.values() if isinstance(sources, dict) else ()
    return target.arguments.get("streaming") is True or any(map(is_streamed, inner))


def check_streams(config: RunConfig) -> Iterator[Finding]:
    """Everything in a configuration that doesn't go with its being streamed, or not."""
    if is_streamed(config.dataset):
        yield from conflicts(config)
    if config.generation_eval is not None and is_streamed(config.generation_eval.dataset):
        yield asked_by_number()


def conflicts(config: RunConfig) -> Iterator[Finding]:
    """The same for one whose training data is known to be streamed."""
    loader, schedule = config.dataloader, config.lr_scheduler
    if loader.group_by_length:
        yield Finding(
            ("dataloader", "group_by_length"),
            "group_by_length needs the lengths of all samples first, and the data is streamed.",
            "write packed_sequence instead, which streams, or leave streaming out",
        )
    if loader.shuffle_window is not None and not loader.shuffle:
        yield Finding(
            ("dataloader", "shuffle_window"),
            "shuffle_window says how far shuffle reaches, and shuffle is off.",
            "write shuffle: true, or leave shuffle_window out",
        )
    if schedule.lr_decay_style in NEED_STEPS and config.step_scheduler.max_steps is None:
        yield Finding(
            ("lr_scheduler", "lr_decay_style"),
            f"{schedule.lr_decay_style} goes by how much of the run is done, and a stream doesn't "
            "tell its length.",
            "write step_scheduler.max_steps, or lr_decay_style: constant",
        )


def asked_by_number() -> Finding:
    return Finding(
        ("generation_eval", "dataset", "streaming"),
        "Held-out questions are few, and all of them are asked: they can't be streamed.",
        "leave it out",
        on="key",
    )
