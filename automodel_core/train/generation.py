"""What the model answers before and after training, on samples it was not trained on.

The prompt of a sample is everything before its first supervised token and the reference answer is
the first run of supervised tokens, so any dataset serves without a second description of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import attrs
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.protocols import IGNORE_INDEX, Dataset


@attrs.frozen
class Question:
    """A held-out prompt and its reference answer."""

    prompt_ids: list[int]
    prompt: str
    reference: str


@attrs.frozen
class Answers:
    """What the model said to each question, in the order of the questions."""

    texts: list[str]
    exact_matches: int
    containing: int


def questions_from(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """One question per sample that has both a prompt and an answer."""
    questions = []
    for index in range(len(dataset)):
        ids, labels = dataset[index]["input_ids"], dataset[index]["labels"]
        start = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), 0)
        if not start:
            continue
        end = next((i for i in range(start, len(labels)) if labels[i] == IGNORE_INDEX), len(labels))
        questions.append(
            Question(
                prompt_ids=list(ids[:start]),
                prompt=tokenizer.decode(ids[:start], skip_special_tokens=True).strip(),
                reference=tokenizer.decode(labels[start:end], skip_special_tokens=True).strip(),
            )
        )
    return questions


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})


@torch.no_grad()
def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> Answers:
    """Greedy answers to every question; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    ends = end_tokens(model, tokenizer)
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt_ids))
    texts = [""] * len(questions)
    for chosen in chunks(by_length, batch_size):
        prompts = [questions[i].prompt_ids for i in chosen]
        for index, new_ids in zip(
            chosen, generate(model, prompts, ends, max_new_tokens), strict=True
        ):
            texts[index] = tokenizer.decode(new_ids, skip_special_tokens=True).strip()
    model.train(was_training)
    return scored(texts, questions)


def scored(texts: list[str], questions: Sequence[Question]) -> Answers:
    """Count the answers that are the reference, and those that contain it."""
    pairs = [(text, q.reference) for text, q in zip(texts, questions, strict=True)]
    return Answers(
        texts=texts,
        exact_matches=sum(text == reference for text, reference in pairs),
        containing=sum(contains(text, reference) for text, reference in pairs),
    )


def contains(text: str, reference: str) -> bool:
    """Whether the reference stands in the text as whole words, in any case."""
    return bool(re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", text, re.IGNORECASE))


def generate(
    model: PreTrainedModel, prompts: list[list[int]], ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    """The new tokens after each prompt, padded on the left so that all continue at one place."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    return [cut_at_end(row[width:].tolist(), ends) for row in out]


def cut_at_end(new_ids: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((i for i, token in enumerate(new_ids) if token in ends), len(new_ids))
    return new_ids[:stop]


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
