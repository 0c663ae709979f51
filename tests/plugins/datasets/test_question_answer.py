"""Formats, lengths and counts of question-answer samples, with and without a chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from automodel_core.errors import UserError
from automodel_datasets import building
from automodel_datasets.options import Options, longest_input
from automodel_datasets.question_answer import Example, preparing_answers
from automodel_datasets.stored import Arrays, Texts
from tests.plugins.datasets.styles import STYLES, Style

BASE = Style(None, "", eos="<|endoftext|>", special=())
BASE_WITH_BOS = Style(None, "", bos="<s>", eos="</s>", special=())
CONTEXT = "the river runs through the old town and the city by the sea, " * 4
RIVER = Example(CONTEXT.strip(), "where does the river run?", "through the old town")

CHAT_TOKENIZER = STYLES["chatml"].tokenizer()
BASE_TOKENIZER = BASE.tokenizer()


def dataset_of(examples, tokenizer=CHAT_TOKENIZER, max_length=None, model_config=None):
    options = Options(tokenizer=tokenizer, model_config=model_config, max_length=max_length)
    parts = []
    notes = building.build(examples, preparing_answers, options, parts.append)
    return building.TokenisedDataset(Texts(Arrays.joined(parts)), notes)


def learned(tokenizer, sample):
    return tokenizer.decode([label for label in sample["labels"] if label != -100])


def test_as_a_chat():
    (sample,) = dataset_of([Example("It rains.", "What does it do?", "It rains.")])
    assert CHAT_TOKENIZER.decode(sample["input_ids"]) == (
        "<|im_start|>user\nIt rains.\n\nWhat does it do?<|im_end|>\n"
        "<|im_start|>assistant\nIt rains.<|im_end|>\n"
    )
    assert learned(CHAT_TOKENIZER, sample) == "It rains.<|im_end|>"


def test_as_text():
    (sample,) = dataset_of([Example("It rains.", "What does it do?", "It rains.")], BASE_TOKENIZER)
    assert BASE_TOKENIZER.decode(sample["input_ids"]) == (
        "Context: It rains. Question: What does it do? Answer: It rains.<|endoftext|>"
    )
    assert learned(BASE_TOKENIZER, sample) == " It rains.<|endoftext|>"


def test_as_text_without_a_context():
    (sample,) = dataset_of([Example("", "What is 12 plus one?", "13")], BASE_TOKENIZER)
    text = BASE_TOKENIZER.decode(sample["input_ids"])
    assert text == "Question: What is 12 plus one? Answer: 13<|endoftext|>"


def test_bos_stands_in_front_if_the_tokenizer_puts_it_there():
    tokenizer = BASE_WITH_BOS.tokenizer()
    (sample,) = dataset_of([Example("", "What is 12 plus one?", "13")], tokenizer)
    ids = sample["input_ids"]
    assert tokenizer.decode(ids) == "<s>Question: What is 12 plus one? Answer: 13</s>"
    assert ids[:-1] == tokenizer("Question: What is 12 plus one? Answer: 13")["input_ids"]
    assert learned(tokenizer, sample) == " 13</s>"


def test_the_prompt_has_the_tokens_that_it_has_alone():
    """At inference the prompt is tokenised without the answer: the boundary must be the same."""
    for text, tokenizer in (("text", BASE_TOKENIZER), ("chat", CHAT_TOKENIZER)):
        (sample,) = dataset_of([RIVER], tokenizer)
        start = next(i for i, label in enumerate(sample["labels"]) if label != -100)
        prompt = tokenizer.decode(sample["input_ids"][:start])
        alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert sample["input_ids"][:start] == alone, text


def test_without_an_end_token_there_is_nothing_to_learn_the_end_from():
    tokenizer = BASE.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a chat template nor an EOS token"):
        dataset_of([RIVER], tokenizer)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(5, 160),
    words=st.integers(0, 30),
    tokenizer=st.sampled_from([CHAT_TOKENIZER, BASE_TOKENIZER]),
)
def test_the_context_is_cut_and_never_the_answer(length, words, tokenizer):
    """Every sample fits; the answer and its end are whole; nothing is lost without need."""
    context = " ".join(["the river é runs"] * words)
    example = Example(context, "where?", "through the old town")
    whole = dataset_of([example], tokenizer)[0]
    bare = dataset_of([Example("", "where?", "through the old town")], tokenizer)[0]
    if len(bare["input_ids"]) > length:
        with pytest.raises(UserError, match="even without a context they exceed"):
            dataset_of([example], tokenizer, length)
        return
    dataset = dataset_of([example], tokenizer, length)
    assert len(dataset) == 1
    for sample in dataset:
        assert len(sample["input_ids"]) <= length
        assert learned(tokenizer, sample) == learned(tokenizer, whole)
        if len(whole["input_ids"]) <= length:
            assert sample == whole
            assert not dataset.notes


def test_what_was_cut_and_left_out_is_counted():
    long_answer = Example("", "where?", "through the old town " * 20)
    unanswered = Example("context", "why?", "")
    dataset = dataset_of([RIVER, long_answer, unanswered], max_length=60)
    assert len(dataset) == 1
    assert dataset.notes == [
        "Rows left out because they have no answer: 1.",
        "Contexts cut to keep within max_length, 60 tokens: 1.",
        "Rows left out because even without a context they exceed 60 tokens: 1.",
    ]


def test_a_context_without_a_question_is_never_cut_to_nothing():
    dataset = dataset_of([Example(CONTEXT.strip(), "", "through the old town")], max_length=25)
    assert len(dataset) in (0, 1)
    for sample in dataset:
        assert "user\n<|im_end|>" not in CHAT_TOKENIZER.decode(sample["input_ids"])


def test_rows_without_any_answer_are_refused():
    with pytest.raises(UserError, match=r"No sample is left\. .*they have no answer: 1"):
        dataset_of([Example("", "why?", "")])


@pytest.mark.parametrize(
    ("tokenizer_limit", "model_limit", "longest"),
    [(None, None, None), (128, None, 128), (None, 64, 64), (128, 64, 64), (32, 64, 32)],
)
def test_the_longest_input_is_what_tokenizer_and_model_allow(tokenizer_limit, model_limit, longest):
    tokenizer = BASE.tokenizer()
    if tokenizer_limit:
        tokenizer.model_max_length = tokenizer_limit
    config = LlamaConfig(max_position_embeddings=model_limit) if model_limit else None
    assert longest_input(tokenizer, config) == longest


def test_the_models_limit_is_kept_by_default():
    config = LlamaConfig(max_position_embeddings=50)
    (sample,) = dataset_of([RIVER], model_config=config)
    assert len(sample["input_ids"]) == pytest.approx(50, abs=2)


def test_samples_are_plain_lists_and_the_same_each_time():
    first, second = dataset_of([RIVER]), dataset_of([RIVER])
    assert first[0] == second[0]
    assert all(type(token) is int for token in first[0]["input_ids"] + first[0]["labels"])
