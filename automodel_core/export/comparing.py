"""Does the merged model say what the unmerged one says? One of the two is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.generation import end_tokens, generate

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 512, 16

# For an adapter that comes without data.
SENTENCES = (
    "The capital of France is",
    "Question: what is twelve plus one? Answer:",
    "def fibonacci(n):",
    "Once upon a time, there was",
)


@attrs.frozen
class Continuation:
    """What a model goes on with after a prompt.

    Attributes:
        ids: Prompt and greedy continuation.
        start: Where the continuation begins.
        logits: `[1 + len(ids) - start, vocabulary]`, float32: those that chose each new token, and
            those after the last.
    """

    ids: list[int]
    start: int
    logits: torch.Tensor


@attrs.frozen
class Comparison:
    """How two models differ.

    Attributes:
        largest_difference: Of any two logits.
        agreeing: In how many places both prefer the same token.
        places: How many places were compared.
        prompts: After how many prompts.
    """

    largest_difference: float
    agreeing: int
    places: int
    prompts: int


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]]
) -> list[Continuation]:
    """Greedy continuations of the first prompts, and the logits along them."""
    ends = end_tokens(model, tokenizer)
    found = []
    for prompt in prompts[:PROMPTS]:
        kept = prompt[-PROMPT_TOKENS:]
        ids = kept + generate(model, [kept], ends, NEW_TOKENS)[0].ids
        found.append(Continuation(ids, len(kept), logits_after(model, ids, len(kept))))
    return found


@torch.no_grad()
def compare(model: PreTrainedModel, expected: Sequence[Continuation]) -> Comparison:
    """Hold a model against another's continuations, word by word."""
    differences, agreeing, places = [0.0], 0, 0
    for each in expected:
        logits = logits_after(model, each.ids, each.start)
        differences.append((logits - each.logits).abs().max().item())
        agreeing += int((logits.argmax(-1) == each.logits.argmax(-1)).sum())
        places += len(logits)
    return Comparison(max(differences), agreeing, places, len(expected))


def logits_after(model: PreTrainedModel, ids: list[int], start: int) -> torch.Tensor:
    """The logits from the last token of the prompt on, float32 on the CPU."""
    batch = torch.tensor([ids], device=model.device)
    return model(input_ids=batch, use_cache=False).logits[0, start - 1 :].float().cpu()
