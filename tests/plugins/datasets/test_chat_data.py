"""Chat data from files: forms, columns, what is learned, and what is refused where."""

import contextlib
import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_core.errors import UserError
from automodel_datasets.conversations import make_chat_dataset
from automodel_datasets.hellaswag import make_hellaswag_dataset
from automodel_datasets.messages import Conversation, conversation
from automodel_datasets.rows import Row, read_rows
from automodel_datasets.text import make_text_dataset
from automodel_datasets.tokens import make_token_dataset
from tests.plugins.datasets.styles import STYLES, THOUGHTS_AND_CALLS, Style
from tests.plugins.datasets.test_real_templates import FAMILIES, family

TOKENIZER = STYLES["chatml"].tokenizer()
THINKING = Style(THOUGHTS_AND_CALLS, "<|im_end|>").tokenizer()


def user(text="What is 12 plus one?", **keys):
    return {"role": "user", "content": text, **keys}


def said(text="13", **keys):
    return {"role": "assistant", "content": text, **keys}


TALK = [user("first?"), said("one"), user("second?"), said("two")]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 12, "b": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(tmp_path, *rows, tokenizer=TOKENIZER, **keys):
    path = lines(tmp_path / "chat.jsonl", *rows)
    return make_chat_dataset(path, tokenizer=tokenizer, **keys)


def text(sample, tokenizer=TOKENIZER):
    return tokenizer.decode(sample["input_ids"])


def learned(sample, tokenizer=TOKENIZER):
    """The learned runs, with ¦ between."""
    runs, last = [], -100
    for label in sample["labels"]:
        if label != -100:
            runs[-1].append(label) if last != -100 else runs.append([label])
        last = label
    return "¦".join(tokenizer.decode(run) for run in runs)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_holds_conversations(tmp_path, suffix):
    path = tmp_path / f"chat.{suffix}"
    if suffix == "jsonl":
        lines(path, {"messages": TALK})
    elif suffix == "json":
        path.write_text(json.dumps([{"messages": TALK}]))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], [json.dumps(TALK)]])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": TALK}]), path)
    (sample,) = make_chat_dataset(str(path), tokenizer=TOKENIZER)
    assert learned(sample) == "one<|im_end|>¦two<|im_end|>"


def test_folders_and_globs_are_read_in_the_order_of_their_names(tmp_path):
    for number in (2, 1):
        lines(tmp_path / f"train-{number}.jsonl", {"messages": [user(), said(f"n{number}")]})
    for location in (tmp_path, tmp_path / "train-*.jsonl", tmp_path / "**" / "*.jsonl"):
        dataset = make_chat_dataset(str(location), tokenizer=TOKENIZER)
        assert [learned(sample) for sample in dataset] == ["n1<|im_end|>", "n2<|im_end|>"]
    with pytest.raises(UserError, match=r"no file or folder .*\*\.csv"):
        make_chat_dataset(str(tmp_path / "*.csv"), tokenizer=TOKENIZER)


def test_sharegpt_is_the_same_conversation(tmp_path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "first?"},
        {"from": "gpt", "value": "one"},
    ]
    openai = [{"role": "system", "content": "Be brief."}, user("first?"), said("one")]
    (theirs,) = chat(tmp_path, {"conversations": turns})
    (ours,) = chat(tmp_path, {"messages": openai})
    assert theirs == ours


def test_sharegpt_calls_and_observations_are_tool_calls_and_results(tmp_path):
    call = CALL["function"]
    turns = [
        {"from": "human", "value": "12 + 1?"},
        {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 12}})},
        {"from": "observation", "value": "13"},
        {"from": "gpt", "value": "It is 13."},
    ]
    parsed = conversation(turns)
    assert [each["role"] for each in parsed.messages] == ["user", "assistant", "tool", "assistant"]
    assert parsed.messages[1]["tool_calls"][0]["function"] == {
        "name": call["name"],
        "arguments": {"a": 12},
    }


def test_columns_are_chosen_or_named_with_those_that_exist(tmp_path):
    row = {"dialog": TALK, "functions": TOOLS}
    (sample,) = chat(tmp_path, row, column_mapping={"messages": "dialog", "tools": "functions"})
    assert learned(sample).endswith("two<|im_end|>")
    for mapping in (None, {"messages": "talk"}, {"messages": "dialog", "tools": "tols"}):
        with pytest.raises(UserError) as refused:
            chat(tmp_path, row, column_mapping=mapping)
        assert "chat.jsonl:1 " in refused.value.message
        assert "its columns are dialog, functions" in refused.value.fix
    with pytest.raises(UserError, match="no place for `answers`"):
        chat(tmp_path, row, column_mapping={"answers": "dialog"})


def test_train_on_chooses_what_is_learned(tmp_path):
    row = {"messages": TALK}
    assert learned(chat(tmp_path, row)[0]) == "one<|im_end|>¦two<|im_end|>"
    assert learned(chat(tmp_path, row, train_on="last_turn")[0]) == "two<|im_end|>"
    sample = chat(tmp_path, row, train_on="all")[0]
    assert learned(sample) == text(sample)


def test_the_last_turn_is_all_that_the_assistant_says_after_the_last_question(tmp_path):
    result = {"role": "tool", "content": "13"}
    talk = [user(), said("earlier"), user(), said(None, tool_calls=[CALL]), result, said("It is.")]
    (sample,) = chat(tmp_path, {"messages": talk}, tokenizer=THINKING, train_on="last_turn")
    assert "earlier" not in learned(sample, THINKING)
    assert "<tool_call>" in learned(sample, THINKING)
    assert learned(sample, THINKING).endswith("It is.<|im_end|>")


@pytest.mark.parametrize("name", FAMILIES)
def test_train_on_holds_over_real_templates(tmp_path, name):
    tokenizer = family(name)

    def runs(talk, **keys):
        (sample,) = chat(tmp_path, {"messages": talk}, tokenizer=tokenizer, **keys)
        return sample, learned(sample, tokenizer).split("¦")

    whole, both = runs(TALK)
    assert len(both) == 2
    assert runs(TALK, train_on="last_turn")[1] == both[1:]
    assert runs([TALK[0], said("one", train=False), *TALK[2:]])[1] == both[1:]
    everything, _ = runs(TALK, train_on="all")
    assert everything["labels"] == everything["input_ids"] == whole["input_ids"]


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}])
def test_a_message_may_be_left_out(tmp_path, mark):
    talk = [user("first?"), said("one", **mark), user("second?"), said("two")]
    (sample,) = chat(tmp_path, {"messages": talk})
    assert learned(sample) == "two<|im_end|>"
    (sample,) = chat(tmp_path, {"messages": talk}, train_on="all")
    before, after = text(sample).split("one<|im_end|>")
    assert learned(sample) == f"{before}¦{after}"


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_thoughts_are_masked_where_that_is_wanted(tmp_path, train_on):
    row = {"messages": [user(), said("13", reasoning_content="Count on.")]}
    (whole,) = chat(tmp_path, row, tokenizer=THINKING, train_on=train_on)
    assert "Count on." in learned(whole, THINKING)
    keys = {"train_on": train_on, "mask_reasoning": True}
    (masked,) = chat(tmp_path, row, tokenizer=THINKING, **keys)
    assert text(masked, THINKING) == text(whole, THINKING)
    assert "Count on." not in learned(masked, THINKING)
    assert learned(masked, THINKING).split("¦")[-1].rstrip() == "13<|im_end|>"


def test_a_mark_that_train_on_cannot_honour_is_refused(tmp_path):
    for train, train_on in ((True, "assistant"), (False, "all")):
        with pytest.raises(UserError, match=f"`train: {str(train).lower()}` stands at a message"):
            chat(tmp_path, {"messages": [user(train=train), said()]}, train_on=train_on)


def test_the_nulls_of_parquet_are_no_keys(tmp_path):
    rows = [
        {"messages": [user(), said(train=False), user(), said()]},
        {"messages": [user(), said(reasoning_content="Hm.")]},
    ]
    path = tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second = make_chat_dataset(str(path), tokenizer=THINKING)
    assert learned(first, THINKING).count("13") == 1
    assert "Hm." in learned(second, THINKING)


BROKEN = {
    "no list": ("hello", "not valid JSON"),
    "empty": ([], "no list of messages"),
    "no object": ([user(), "hi"], "message 2: it is no object"),
    "unknown role": ([user(), {"role": "bot", "content": "x"}], "message 2: its role is 'bot'"),
    "unknown sender": ([{"from": "alien", "value": "x"}], "message 1: its `from` is 'alien'"),
    "no role": ([{"content": "x"}], "message 1: its role is None"),
    "role of a list": ([{"role": ["user"], "content": "x"}], "its role is"),
    "assistant first": ([said()], "message 1: the role assistant can't begin"),
    "twice the user": ([user(), user(), said()], "message 2: the role user can't follow user"),
    "twice the assistant": ([user(), said(), said()], "message 3: the role assistant can't"),
    "late system": ([user(), {"role": "system", "content": "x"}], "role system can't follow user"),
    "no answer": ([user()], "last message is of the role user"),
    "result without call": ([user(), said(), {"role": "tool", "content": "1"}], "has called none"),
    "empty content": ([user(), said(" ")], "message 2: its content is empty"),
    "null content": ([user(), said(None)], "message 2: its content is empty"),
    "number": ([user(), said(13)], "message 2: its content is not text but 13"),
    "object": ([user(), said({"a": 1})], "its content is not text but {'a': 1}"),
    "half a character": ([user(), said("\ud83d")], "its content is not text"),
    "image": ([user([{"type": "image_url"}]), said()], "part that is no text: 'image_url'"),
    "thought of a number": ([user(), said(reasoning_content=3)], "`reasoning_content` is not text"),
    "call of the user": ([user(tool_calls=[CALL]), said()], "only the assistant calls tools"),
    "nameless call": ([user(), said(tool_calls=[{"function": {}}])], "tool call has no name"),
    "calls of a string": ([user(), said(tool_calls="add(1)")], "tool_calls are no list"),
    "bad arguments": (
        [user(), said(tool_calls=[{"function": {"name": "add", "arguments": "{a: 1}"}}])],
        "the arguments of add is not valid JSON",
    ),
    "arguments of a list": (
        [user(), said(tool_calls=[{"function": {"name": "add", "arguments": [1]}}])],
        "the arguments of add are no object",
    ),
    "arguments of nothing": (
        [user(), said(tool_calls=[{"function": {"name": "add", "arguments": 0}}])],
        "the arguments of add are no object",
    ),
    "train of a word": ([user(), said(train="no")], "`train` is 'no'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_conversation_is_refused_with_file_and_line_or_counted(tmp_path, case):
    messages, message = BROKEN[case]
    good = {"messages": [user(), said()]}
    rows = [good, {"messages": messages}, good]
    with pytest.raises(UserError) as refused:
        chat(tmp_path, *rows)
    assert "chat.jsonl:2" in refused.value.message
    assert message in refused.value.message
    dataset = chat(tmp_path, *rows, on_bad_row="skip")
    assert len(dataset) == 2
    assert dataset.notes[0].startswith("Bad rows skipped: 1. The first: ")
    assert "chat.jsonl:2" in dataset.notes[0]


def test_broken_lines_are_refused_or_counted_each_with_its_own_number(tmp_path):
    path = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": [user(), said()]}).encode()
    bad = [b'{"messages": [', b"\xff\xfe{}", b"[1]", b'{"messages": ' + b"9" * 5000 + b"}"]
    path.write_bytes(b"\n".join([good, *bad, good]))
    with pytest.raises(UserError, match=r"chat.jsonl:2 is not valid JSON"):
        make_chat_dataset(str(path), tokenizer=TOKENIZER)
    dataset = make_chat_dataset(str(path), tokenizer=TOKENIZER, on_bad_row="skip")
    assert len(dataset) == 2
    assert dataset.notes[0].startswith("Bad rows skipped: 4.")
    refusals = [str(row) for row in read_rows(path) if not isinstance(row, Row)]
    assert [f"chat.jsonl:{number}" in each for number, each in enumerate(refusals, start=2)] == (
        [True] * 4
    )


KEYS = (
    "role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "train",
    "type", "text", "reasoning_content",
)  # fmt: skip
WORDS = ("user", "assistant", "tool", "gpt", "function_call", "text")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner | st.sampled_from(WORDS), max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_whatever_json_says_is_a_conversation_or_refused(messages, tools):
    for each in (messages, [user(), messages], [user(), said(), messages]):
        with contextlib.suppress(UserError):
            parsed = conversation(each, tools)
            assert isinstance(parsed, Conversation)
            assert all(isinstance(message["content"], str) for message in parsed.messages)
            assert parsed.messages[-1]["role"] == "assistant"


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=5))
def test_every_line_of_a_file_is_a_row_or_an_error_that_names_it(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    path.write_bytes(b"\n".join(content))
    rows = list(read_rows(path))
    numbers = [number for number, line in enumerate(content, start=1) if line.strip()]
    assert len(rows) == len(numbers)
    for row, number in zip(rows, numbers, strict=True):
        assert f"{path}:{number}" in (row.place if isinstance(row, Row) else row.message)


def test_text_keeps_its_white_space_and_ends_with_eos(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "  def f():\n    return 1\n"}, {"text": "b"})
    first, second = make_text_dataset(path, tokenizer=TOKENIZER)
    assert learned(first) == text(first) == "  def f():\n    return 1\n<|im_end|>"
    assert learned(second) == "b<|im_end|>"


@pytest.mark.parametrize("value", [None, "", "  ", 3, ["a"], "\ud83d"])
def test_text_that_is_none_is_a_bad_row(tmp_path, value):
    path = lines(tmp_path / "a.jsonl", {"text": "b"}, {"text": value})
    with pytest.raises(UserError, match=r"a.jsonl:2: "):
        make_text_dataset(path, tokenizer=TOKENIZER)
    assert len(make_text_dataset(path, tokenizer=TOKENIZER, on_bad_row="skip")) == 1


@pytest.mark.parametrize("make", [make_text_dataset, make_token_dataset])
def test_a_missing_column_is_named_with_those_that_exist(tmp_path, make):
    path = lines(tmp_path / "a.jsonl", {"body": "b", "title": "c"})
    with pytest.raises(UserError, match=r"a.jsonl:1 has no column") as refused:
        make(path, tokenizer=TOKENIZER)
    assert refused.value.fix == "its columns are body, title"


def test_tokens_come_from_lists_or_from_json_in_a_csv(tmp_path):
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    (from_lines,) = make_token_dataset(lines(tmp_path / "a.jsonl", row), tokenizer=TOKENIZER)
    (tmp_path / "a.csv").write_text('input_ids,labels\n"[5, 6, 7]","[-100, 6, 7]"\n')
    (from_csv,) = make_token_dataset(str(tmp_path / "a.csv"), tokenizer=TOKENIZER)
    assert from_lines == from_csv == row
    (whole,) = make_token_dataset(
        lines(tmp_path / "b.jsonl", {"ids": [5, 6]}), "ids", tokenizer=TOKENIZER
    )
    assert whole == {"input_ids": [5, 6], "labels": [5, 6]}


SWAG = {"ctx": "A man sits.", "endings": ["He flies.", "He stands up."], "label": "1"}


def test_hellaswag_learns_the_right_ending(tmp_path):
    path = lines(tmp_path / "train.jsonl", SWAG, SWAG | {"label": 0})
    first, second = make_hellaswag_dataset(path, tokenizer=TOKENIZER)
    assert text(first) == "A man sits. He stands up.<|im_end|>"
    assert learned(first) == " He stands up.<|im_end|>"
    assert learned(second) == " He flies.<|im_end|>"
    assert len(make_hellaswag_dataset(path, num_samples_limit=1, tokenizer=TOKENIZER)) == 1
    with pytest.raises(UserError) as refused:
        make_hellaswag_dataset(path, num_samples_limit=0, tokenizer=TOKENIZER)
    assert refused.value.argument == "num_samples_limit"


@pytest.mark.parametrize("label", ["", "2", -1, None, "one"])
def test_hellaswag_refuses_a_label_that_is_no_ending(tmp_path, label):
    path = lines(tmp_path / "test.jsonl", SWAG, SWAG | {"label": label})
    with pytest.raises(UserError, match=r"test.jsonl:2: `label` is"):
        make_hellaswag_dataset(path, tokenizer=TOKENIZER)
    assert len(make_hellaswag_dataset(path, tokenizer=TOKENIZER, on_bad_row="skip")) == 1
