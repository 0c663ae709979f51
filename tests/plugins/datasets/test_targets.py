"""`make_squad_dataset` and `make_instruction_dataset`, from files to samples."""

import json

import pytest

from automodel_core.errors import UserError
from automodel_datasets.instructions import make_instruction_dataset
from automodel_datasets.squad import make_squad_dataset
from tests.plugins.datasets.styles import STYLES

TOKENIZER = STYLES["chatml"].tokenizer()
SQUAD_ROW = {
    "id": "1",
    "title": "rivers",
    "context": "The river runs through the old town.",
    "question": "Where does it run?",
    "answers": {"text": ["through the old town", "the old town"], "answer_start": [15, 23]},
}
MAPPING = {"question": "instruction", "answer": "output"}


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(sample):
    return TOKENIZER.decode(sample["input_ids"])


def learned(sample):
    return TOKENIZER.decode([label for label in sample["labels"] if label != -100])


def squad(tmp_path, *rows, **keys):
    return make_squad_dataset(lines(tmp_path / "train.jsonl", *rows), tokenizer=TOKENIZER, **keys)


def instructions(tmp_path, *rows, mapping=MAPPING, **keys):
    path = lines(tmp_path / "train.jsonl", *rows)
    return make_instruction_dataset(path, mapping, tokenizer=TOKENIZER, **keys)


def test_squad_asks_about_the_context_and_learns_the_first_answer(tmp_path):
    (sample,) = squad(tmp_path, SQUAD_ROW)
    assert "The river runs through the old town.\n\nWhere does it run?<|im_end|>" in text(sample)
    assert learned(sample) == "through the old town<|im_end|>"


def test_squad_leaves_out_and_counts_what_has_no_answer(tmp_path):
    unanswerable = SQUAD_ROW | {"answers": {"text": [], "answer_start": []}}
    dataset = squad(tmp_path, SQUAD_ROW, unanswerable)
    assert len(dataset) == 1
    assert dataset.notes == ["Rows left out because they have no answer: 1."]


@pytest.mark.parametrize("answers", ["the old town", {"text": "the old town"}, {"text": [3]}, None])
def test_squad_refuses_answers_of_another_form(tmp_path, answers):
    with pytest.raises(UserError, match=r"train.jsonl:2: `answers` is not of the form"):
        squad(tmp_path, SQUAD_ROW, SQUAD_ROW | {"answers": answers})


@pytest.mark.parametrize("column", ["context", "question", "answers"])
def test_squad_names_a_missing_column_and_those_that_exist(tmp_path, column):
    row = {name: value for name, value in SQUAD_ROW.items() if name != column}
    with pytest.raises(UserError) as refused:
        squad(tmp_path, row)
    assert f"train.jsonl:1 has no column `{column}`" in refused.value.message
    assert ", ".join(row) in refused.value.fix


def test_squad_takes_splits_and_limits(tmp_path):
    rows = [SQUAD_ROW | {"question": f"{number}?"} for number in range(10)]
    first, second = squad(tmp_path, *rows, split="train[50%:]", limit_dataset_samples=2)
    assert "5?" in text(first)
    assert "6?" in text(second)


def test_instructions_map_columns_to_roles(tmp_path):
    row = {"instruction": "Add one.", "input": "12", "output": "13"}
    mapping = MAPPING | {"context": "input"}
    (sample,) = instructions(tmp_path, row, mapping=mapping)
    assert "<|im_start|>user\n12\n\nAdd one.<|im_end|>" in text(sample)
    assert learned(sample) == "13<|im_end|>"


@pytest.mark.parametrize("context", ["", None, "  "])
def test_a_context_may_be_empty(tmp_path, context):
    row = {"instruction": "Add one to 12.", "input": context, "output": "13"}
    (sample,) = instructions(tmp_path, row, mapping=MAPPING | {"context": "input"})
    assert "<|im_start|>user\nAdd one to 12.<|im_end|>" in text(sample)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Add.", "output": ""}, ":2: `output` is empty"),
        ({"instruction": "Add.", "output": "  "}, ":2: `output` is empty"),
        ({"instruction": "Add.", "output": None}, ":2: `output` is empty"),
        ({"instruction": "", "output": "13"}, ":2: `instruction` is empty"),
        ({"instruction": "Add.", "output": 13}, ":2: `output` is not text but int: 13"),
        ({"instruction": ["Add."], "output": "13"}, ":2: `instruction` is not text but list"),
    ],
)
def test_a_broken_row_is_refused_with_file_and_line(tmp_path, row, message):
    with pytest.raises(UserError) as refused:
        instructions(tmp_path, {"instruction": "Add.", "output": "13"}, row)
    assert message in refused.value.message


def test_a_context_that_is_all_there_is_to_answer_may_not_be_empty(tmp_path):
    mapping = {"context": "instruction", "answer": "output"}
    with pytest.raises(UserError, match="`instruction` is empty"):
        instructions(tmp_path, {"instruction": "", "output": "13"}, mapping=mapping)


def test_a_missing_column_lists_those_that_exist(tmp_path):
    with pytest.raises(UserError) as refused:
        instructions(tmp_path, {"prompt": "Add.", "completion": "13"})
    assert refused.value.fix == "its columns are prompt, completion"
    assert refused.value.argument == "column_mapping"


@pytest.mark.parametrize(
    "mapping",
    [{"question": "a"}, {"answer": "a"}, {}, {"question": "a", "answer": "b", "system": "c"}],
)
def test_a_mapping_needs_an_answer_and_something_to_answer(tmp_path, mapping):
    with pytest.raises(UserError) as refused:
        instructions(tmp_path, {"a": "x", "b": "y"}, mapping=mapping)
    assert refused.value.argument == "column_mapping"
    assert "question: COLUMN, answer: COLUMN" in refused.value.fix


def test_a_broken_row_is_skipped_and_counted_if_the_yaml_says_so(tmp_path):
    first = "Bad rows skipped: 1. The first:"
    broken = SQUAD_ROW | {"answers": None}
    data = squad(tmp_path, broken, SQUAD_ROW, on_bad_row="skip")
    assert len(data) == 1
    assert data.notes[0].startswith(first)
    assert "train.jsonl:1: `answers`" in data.notes[0]
    with pytest.raises(UserError, match="No sample is left"):
        squad(tmp_path, broken, on_bad_row="skip")
