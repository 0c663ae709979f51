"""A function that yields items is a data set: the one that the documentation shows, and others."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from automodel_core.errors import UserError
from automodel_core.places import locate
from automodel_core.signatures import live_signature, read_signature
from automodel_datasets.authoring import conversations, questions, texts, tokens
from automodel_datasets.building import Placed
from automodel_datasets.messages import Conversation
from automodel_datasets.question_answer import Example
from automodel_datasets.writing import Completion
from tests.plugins.datasets.styles import STYLES

PAGE = Path(__file__).parents[3] / "docs" / "your_own_dataset.md"
TOKENIZER = STYLES["chatml"].tokenizer()
ASKED = {"role": "user", "content": "What is 12 plus one?"}
SAID = {"role": "assistant", "content": "13"}


def text(sample):
    return TOKENIZER.decode(sample["input_ids"])


def learned(sample):
    return TOKENIZER.decode([label for label in sample["labels"] if label != -100])


@pytest.fixture
def riddles(tmp_path, monkeypatch):
    """The page's function, imported from a package as its entry point says."""
    page = PAGE.read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    package, module, name = re.search(r'riddles = "(.+)\.(.+):(.+)"', page).groups()
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield getattr(importlib.import_module(f"{package}.{module}"), name)
    for each in (package, f"{package}.{module}"):
        sys.modules.pop(each, None)


def test_the_page_keeps_its_promise_of_15_lines():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_page_s_function_is_a_data_set_with_the_engine_s_options(riddles, tmp_path):
    path = tmp_path / "riddles.tsv"
    path.write_text(
        "What has keys but no locks?\tA piano.\nno solution\nWhat gets wet?\tA towel.\n"
    )
    with pytest.raises(UserError, match=r"riddles.tsv:2 has no tab"):
        riddles(path=str(path), tokenizer=TOKENIZER)
    dataset = riddles(path=str(path), tokenizer=TOKENIZER, on_bad_row="skip", train_on="all")
    assert len(dataset) == 2
    assert dataset.notes == [f"Bad rows skipped: 1. The first: {path}:2 has no tab."]
    assert learned(dataset[0]) == text(dataset[0])
    assert learned(riddles(str(path), tokenizer=TOKENIZER, on_bad_row="skip")[1]) == (
        "A towel.<|im_end|>"
    )


def test_the_page_s_keys_are_checked_without_importing_anything(riddles):
    signature = read_signature(locate("my_package.data.riddles"))
    options = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    keys = re.findall(r"^  (\w+):", options, re.MULTILINE)
    assert len(keys) == 7
    assert all(signature.get(key) for key in keys if key != "_target_")
    assert "left out and counted" in signature.get("on_bad_row").doc


BUILT_IN = [
    "conversations.make_chat_dataset",
    "text.make_text_dataset",
    "tokens.make_token_dataset",
    "hellaswag.make_hellaswag_dataset",
    "squad.make_squad_dataset",
    "instructions.make_instruction_dataset",
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sources_are_read_from_source_as_python_sees_them(name):
    read = read_signature(locate(f"automodel_datasets.{name}"))
    module, function = name.split(".")
    live = live_signature(
        getattr(importlib.import_module(f"automodel_datasets.{module}"), function)
    )
    assert [(p.name, p.annotation) for p in read.parameters] == [
        (p.name, p.annotation) for p in live.parameters
    ]
    assert [p.default and eval(p.default) for p in read.parameters] == [
        p.default and eval(p.default) for p in live.parameters
    ]
    assert all(p.doc for p in read.parameters)


def test_an_option_of_conversations_is_none_of_texts():
    @texts
    def lines():
        yield "a text"

    assert "train_on" not in inspect.signature(lines).parameters
    with pytest.raises(TypeError, match="train_on"):
        lines(tokenizer=TOKENIZER, train_on="all")


def test_what_the_author_names_too_is_given_to_both():
    seen = []

    @texts
    def lines(tokenizer, seed=0):
        seen.append((tokenizer, seed))
        yield "a text"

    assert len(lines(tokenizer=TOKENIZER, seed=3)) == 1
    assert seen == [(TOKENIZER, 3)]


def test_conversations_may_bring_tools_and_places():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]

    @conversations
    def talks():
        yield Conversation([ASKED, SAID], tools)
        yield Placed([ASKED], "somewhere:2")

    with pytest.raises(UserError, match=r"^somewhere:2: The last message is of the role user"):
        talks(tokenizer=TOKENIZER)


def test_a_text_is_learned_whole_to_its_end_and_a_completion_behind_its_prompt():
    @texts
    def lines():
        yield "The river runs."
        yield Completion("The sum of 12", " and one is 13.")

    whole, completion = lines(tokenizer=TOKENIZER)
    assert learned(whole) == text(whole) == "The river runs.<|im_end|>"
    assert learned(completion) == " and one is 13.<|im_end|>"
    assert text(completion) == "The sum of 12 and one is 13.<|im_end|>"


def targets(samples):
    """The tokens that a model learns to predict: labels shifted by one."""
    return [label for sample in samples for label in sample["labels"][1:] if label != -100]


@pytest.mark.parametrize("limit", [2, 3, 5, 7, 100])
def test_a_long_text_is_divided_and_each_token_learned_once(limit):
    @texts
    def lines():
        yield "The river runs through the old town, and its currency is the crown."

    (whole,) = lines(tokenizer=TOKENIZER)
    parts = lines(tokenizer=TOKENIZER, max_length=limit)
    assert max(len(part["input_ids"]) for part in parts) <= limit
    assert targets(parts) == whole["input_ids"][1:]


def test_a_conversation_and_a_completion_that_are_too_long_are_left_out_and_counted():
    @conversations
    def talks():
        yield [ASKED, SAID]
        yield [ASKED, {"role": "assistant", "content": "13 " * 50}]

    dataset = talks(tokenizer=TOKENIZER, max_length=60)
    assert len(dataset) == 1
    assert dataset.notes == ["Rows left out because they exceed max_length, 60 tokens: 1."]

    @texts
    def completions():
        yield Completion("The sum " * 50, "is 13.")
        yield Completion("The sum ", "is 13.")

    assert len(completions(tokenizer=TOKENIZER, max_length=60)) == 1


def test_nothing_left_is_refused_with_the_counts():
    @conversations
    def talks():
        yield [SAID]
        yield [ASKED, SAID | {"train": False}]

    with pytest.raises(UserError) as refused:
        talks(tokenizer=TOKENIZER, on_bad_row="skip")
    assert "No sample is left. Bad rows skipped: 1. The first: item 1" in refused.value.message
    assert "nothing of them is to be learned: 1" in refused.value.message


def test_tokens_are_taken_as_they_are_and_labels_mask():
    @tokens
    def rows():
        yield [5, 6, 7]
        yield {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}

    first, second = rows(tokenizer=TOKENIZER)
    assert first == {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    assert second == {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "input_ids is no list of tokens"),
        ("5 6", "input_ids is no list of tokens"),
        ([5, "6"], "input_ids holds '6'"),
        ([5, True], "input_ids holds True"),
        ([5, 20], "the model knows tokens from 0 to 19"),
        ([5, -1], "input_ids holds -1"),
        ({"input_ids": [5, 6], "labels": [6]}, "labels are not those of input_ids"),
        ({"input_ids": [5, 6], "labels": [6, -100]}, "labels are not those of input_ids"),
    ],
)
def test_tokens_that_no_model_could_take_are_bad_rows(item, message):
    @tokens
    def rows():
        yield item

    with pytest.raises(UserError, match=message):
        rows(tokenizer=TOKENIZER, model_config=LlamaConfig(vocab_size=20))


def test_a_tokenizer_without_a_template_writes_no_conversation():
    bare = STYLES["chatml"].tokenizer()
    bare.chat_template = None

    @conversations
    def talks():
        yield [ASKED, SAID]

    with pytest.raises(UserError, match="has no chat template"):
        talks(tokenizer=bare)


def test_a_length_that_learns_nothing_is_refused():
    @texts
    def lines():
        yield "a text"

    with pytest.raises(UserError) as refused:
        lines(tokenizer=TOKENIZER, max_length=1)
    assert refused.value.argument == "max_length"


def test_questions_are_a_chat_whose_context_is_cut_where_it_is_too_long():
    broken = UserError("line 3 is broken")

    @questions
    def asked():
        yield Example("It rains. " * 40, "Does it rain?", "Yes.")
        yield Placed(Example("", "Does it?", ""), "line 2")
        yield broken

    with pytest.raises(UserError, match="line 3 is broken"):
        asked(tokenizer=TOKENIZER)
    (sample,) = data = asked(tokenizer=TOKENIZER, max_length=60, on_bad_row="skip")
    assert len(sample["input_ids"]) <= 60
    assert "It rains.\n\nDoes it rain?<|im_end|>" in text(sample)
    assert learned(sample) == "Yes.<|im_end|>"
    assert data.notes == [
        "Bad rows skipped: 1. The first: line 3 is broken",
        "Rows left out because they have no answer: 1.",
        "Contexts cut to keep within max_length, 60 tokens: 1.",
    ]
