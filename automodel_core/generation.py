"""Continuing prompts with a model: what answering held-out questions in a run, `automodel chat` and
`automodel generate` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


@attrs.frozen
class Continuation:
    """The new tokens after a prompt.

    Attributes:
        ids: Without the token that ended it.
        ended: Whether the model ended it; if not, the limit did.
    """

    ids: list[int]
    ended: bool


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    *,
    processors: Sequence[LogitsProcessor] = (),
    streamer: BaseStreamer | None = None,
    seen: Mapping[str, Any] | None = None,
) -> list[Continuation]:
    """The most probable next token, again and again, after each prompt of a batch.

    Prompts are padded on the left, so that all continue at one place. A row is padded with its own
    first token: that is masked, but a repetition penalty in the model's generation settings counts
    every token that it sees, and must not count another for being in a batch.

    Args:
        model: In evaluation mode.
        prompts: The tokens of each; none is empty.
        ends: Tokens that end an answer.
        max_new_tokens: The limit, for every prompt.
        processors: Applied to the logits after those of the model's generation settings.
        streamer: Told each token as it comes; takes one prompt alone.
        seen: What else the model is called with, such as pixels; goes with one prompt alone.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        padding = width - len(prompt)
        ids[row, :padding] = prompt[0]
        ids[row, padding:] = torch.tensor(prompt)
        mask[row, padding:] = 1
    shown = {
        name: value.to(model.device) if torch.is_tensor(value) else value
        for name, value in (seen or {}).items()
    }
    out = model.generate(
        **shown,
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        logits_processor=list(processors),
        streamer=streamer,
    )
    return [cut_at_end(row[width:].tolist(), ends) for row in out]


def cut_at_end(new_ids: list[int], ends: Sequence[int]) -> Continuation:
    stop = next((i for i, token in enumerate(new_ids) if token in ends), None)
    return Continuation(new_ids[:stop], ended=stop is not None)


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
