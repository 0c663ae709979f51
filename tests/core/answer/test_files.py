"""Files of prompts and of answers: what is refused, and what a kill leaves."""

import json

import pytest

from automodel_core.answer.answer_file import AnswerFile
from automodel_core.answer.prompt_file import read_prompts
from automodel_core.config.report import ConfigError
from automodel_core.errors import UserError

SETTINGS = {"model": "some/model", "seed": 0}


@pytest.fixture
def prompts(tmp_path):
    """Write a prompt file; returns its path."""

    def write(*records, text=None):
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(text or b"".join(json.dumps(r).encode() + b"\n" for r in records))
        return path

    return write


def answered(record):
    return {**record, "answer": "yes\u2028\n", "finish_reason": "stop"}


GOOD = [
    {"prompt": "a"},
    {"id": 7, "prompt": "b \u4e16", "more": {"x": [1.5, None]}},
    {"messages": [{"role": "user", "content": "c"}]},
]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'"prompt"',
        b"{}",
        b'{"prompt": 1}',
        b'{"prompt": "a", "messages": []}',
        b'{"messages": []}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        b'{"prompt": "a", "answer": "b"}',
        b'{"prompt": "a", "finish_reason": "b"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "x": NaN}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_bad_line_is_refused_at_its_place(prompts, line):
    path = prompts(text=b'{"prompt": "good"}\n\n' + line + b"\n")
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert [str(each.mark) for each in caught.value.problems] == [f"{path}:3:1"]


def test_every_bad_line_is_told_at_once(prompts):
    with pytest.raises(ConfigError) as caught:
        read_prompts(prompts(text=b"1\n2\n3\n"))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("text", [b"\n", b"\xef\xbb\xbf\n \n"])
def test_a_file_without_prompts_is_refused(prompts, text):
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(prompts(text=text))


def test_answers_are_gone_on_with_after_any_cut(prompts, tmp_path):
    asked = read_prompts(prompts(*GOOD))
    whole = AnswerFile(tmp_path / "whole.jsonl", SETTINGS)
    assert whole.open(asked) == 0
    whole.append(answered(each.record) for each in asked)
    content = whole.path.read_bytes()
    assert [json.loads(line) for line in content.split(b"\n")[:-1]] == list(map(answered, GOOD))
    for cut in range(len(content) + 1):
        whole.path.write_bytes(content[:cut])
        done = whole.open(asked)
        assert done == content[:cut].count(b"\n")
        whole.append(answered(each.record) for each in asked[done:])
        assert whole.path.read_bytes() == content


def test_answers_to_other_prompts_are_refused_and_left_alone(prompts, tmp_path):
    asked = read_prompts(prompts(*GOOD))
    path = tmp_path / "out.jsonl"
    for text in (
        json.dumps(answered({"prompt": "other"})) + "\n",
        json.dumps({"prompt": "a"}) + "\n",  # the prompt file itself
        json.dumps({"prompt": "a"}),  # without its newline
        "".join(json.dumps(answered(each)) + "\n" for each in [*GOOD, GOOD[0]]),
        "notes of mine",
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="does not belong to these prompts"):
            AnswerFile(path, SETTINGS).open(asked)
        assert path.read_text() == text


def test_answers_of_another_model_are_not_gone_on_with(prompts, tmp_path):
    asked = read_prompts(prompts(*GOOD))
    first = AnswerFile(tmp_path / "out.jsonl", SETTINGS)
    first.open(asked)
    first.append([answered(GOOD[0])])
    with pytest.raises(UserError, match="made with model: some/model, not other/model"):
        AnswerFile(first.path, {**SETTINGS, "model": "other/model"}).open(asked)
    assert AnswerFile(first.path, SETTINGS).open(asked) == 1
