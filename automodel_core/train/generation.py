"""What the model answers before and after training, on samples it was not trained on.

The prompt of a sample is everything before its first supervised token and the reference answer is
the first run of supervised tokens, so any dataset serves without a second description of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.generation import chunks, end_tokens, generate
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
        found = generate(model, prompts, ends, max_new_tokens)
        for index, answer in zip(chosen, found, strict=True):
            texts[index] = tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
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
