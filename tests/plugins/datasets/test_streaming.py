"""Sets of text as streams: the samples of the same set by number, whoever shares the work."""

import json
import pickle
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from automodel_core.errors import UserError
from automodel_core.train.packing import PackedDataset, first_fit
from automodel_core.train.stream_order import Pass, Plan, as_sample
from automodel_core.train.streams import Head, reading
from automodel_datasets import streaming
from automodel_datasets.authoring import texts
from automodel_datasets.conversations import make_chat_dataset
from automodel_datasets.hellaswag import make_hellaswag_dataset
from automodel_datasets.hub import streamed_hub_rows
from automodel_datasets.instructions import make_instruction_dataset
from automodel_datasets.mixture import make_mixture
from automodel_datasets.squad import make_squad_dataset
from automodel_datasets.text import make_text_dataset
from automodel_datasets.tokens import make_token_dataset
from tests.plugins.datasets.styles import STYLES

TOKENIZER = STYLES["chatml"].tokenizer()

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
ROWS = {
    "messages": TALK,
    "text": "the river runs through the old town " * 4,
    "input_ids": list(range(40)),
    "context": "",
    "question": "Where?",
    "answers": {"text": ["there"]},
    "ctx": "The river",
    "endings": ["runs", "sleeps"],
    "label": 0,
}
MADE = {
    "chat": lambda path, **options: make_chat_dataset(path, **options),
    "text": lambda path, **options: make_text_dataset(path, max_length=16, **options),
    "tokens": lambda path, **options: make_token_dataset(path, max_length=16, **options),
    "squad": lambda path, **options: make_squad_dataset(path, **options),
    "hellaswag": lambda path, **options: make_hellaswag_dataset(path, **options),
    "instructions": lambda path, **options: make_instruction_dataset(
        path, {"question": "question", "answer": "text"}, **options
    ),
}


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Rows that every one of the sets takes, two of them broken."""
    rows = [json.dumps(ROWS | {"question": f"Where is {n}?"}) for n in range(22)]
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    file.write_text("\n".join([*rows[:9], "{", "[1]", *rows[9:]]) + "\n")
    return str(file)


def samples(portions):
    return [p.samples[index] for p in portions for index in range(len(p.lengths))]


@pytest.mark.parametrize("name", MADE)
def test_a_stream_has_the_samples_of_the_set_in_its_order_however_workers_share_it(name, path):
    options = {"tokenizer": TOKENIZER, "on_bad_row": "skip"}
    by_number = MADE[name](path, **options)
    stream = MADE[name](path, streaming=True, **options)
    expected = [by_number[index] for index in range(len(by_number))]
    portions = list(stream.portions(0, 1))
    assert samples(portions) == expected
    assert [n for p in portions for n in p.lengths] == [len(each["input_ids"]) for each in expected]
    assert sum(p.counts.get("Bad rows skipped", 0) for p in portions) == 2
    assert "train.jsonl:10 is not valid JSON" in next(p.first_bad for p in portions if p.first_bad)
    for workers in (2, 3):
        dealt = [list(stream.portions(worker, workers)) for worker in range(workers)]
        in_turn = [dealt[n % workers][n // workers] for n in range(len(portions))]
        assert sum(map(len, dealt)) == len(portions)
        assert samples(in_turn) == expected
    assert samples(stream.portions(2, 1)) == samples(portions[2:])


def test_a_packed_stream_is_the_set_packed_in_its_order(path):
    options = {"tokenizer": TOKENIZER, "on_bad_row": "skip"}
    by_number = make_squad_dataset(path, **options)
    size = int(3.5 * max(by_number.lengths))
    rows = first_fit(by_number.lengths.tolist(), size)
    lengths = np.array([by_number.lengths[row].sum() for row in rows])
    packed = PackedDataset(by_number, size, rows, lengths)
    stream = make_squad_dataset(path, streaming=True, **options)
    run = Pass(reading(StatefulDataLoader, stream, seed=0), Plan(0, size=size), epoch=0)
    rows = [as_sample(row, packed=True) for row in run.upcoming(100)]
    assert rows == [packed[index] for index in range(len(packed))]
    assert max(len(packed.members(index)) for index in range(len(packed))) == 3


@given(st.integers(0, 40), st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_portions_partition_rows_of_any_number(rows, first, step):
    every = [list(streaming.every(iter(range(rows)), n, step)) for n in range(step)]
    dealt = sorted(chain.from_iterable(chain.from_iterable(every)))
    assert dealt == list(range(rows))
    behind = chain.from_iterable(streaming.every(iter(range(rows)), first, 1))
    assert list(behind) == list(range(first * streaming.ROWS, rows))


def test_nothing_is_read_before_it_is_asked_for_and_no_further_than_that():
    read = []

    @texts
    def endless():
        while True:
            read.append(1)
            yield "a text"

    stream = endless(tokenizer=TOKENIZER, streaming=True)
    assert not read
    next(stream.portions(0, 1))
    assert len(read) == streaming.ROWS


def test_a_broken_row_ends_a_stream_that_doesn_t_skip_them_at_its_place(path):
    stream = make_chat_dataset(path, tokenizer=TOKENIZER, streaming=True)
    rest = stream.portions(0, 1)
    assert len(next(rest).lengths) == len(next(rest).lengths) == 4
    with pytest.raises(UserError, match=r"train.jsonl:10"):
        next(rest)


def test_a_stream_is_made_again_in_another_process(path):
    stream = make_text_dataset(path, tokenizer=TOKENIZER, on_bad_row="skip", streaming=True)
    again = pickle.loads(pickle.dumps(stream))
    assert samples(again.portions(0, 1)) == samples(stream.portions(0, 1))


def test_a_stream_without_a_sample_is_refused_with_what_became_of_its_rows(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(UserError, match="no sample in the stream"):
        Head.of(make_text_dataset(str(empty), tokenizer=TOKENIZER, streaming=True), ("dataset",))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": ""}\n' * 3)
    stream = make_text_dataset(str(bad), tokenizer=TOKENIZER, streaming=True, on_bad_row="skip")
    with pytest.raises(UserError, match="Bad rows skipped: 3"):
        Head.of(stream, ("dataset",))


def test_a_slice_of_the_hub_can_t_be_streamed():
    with pytest.raises(UserError, match=r"train\[:10\] is a slice"):
        next(streamed_hub_rows("some/set", "train[:10]", argument="dataset_name", name=None))


@texts
def lines(word: str, count: int):
    for number in range(count):
        yield f"{word} {number}"


def line(word: str, count: int, *, streaming: bool = True):
    return lines(word, count, tokenizer=TOKENIZER, streaming=streaming)


def test_streams_are_mixed_by_weight_at_every_place_and_start_again_where_they_end():
    mixed = make_mixture(
        {"a": line("river", 100), "b": line("town", 3)}, weights={"a": 3, "b": 1}, samples=40
    )
    portions = list(mixed.portions(0, 1))
    sources = [name for p in portions for name in p.sources]
    said = [TOKENIZER.decode(s["input_ids"]).partition("<")[0] for s in samples(portions)]
    assert mixed.sources == ("a", "b")
    assert all(abs(sources[:place].count("b") - place / 4) <= 1 for place in range(41))
    assert [text for text in said if "town" in text] == [f"town {n % 3}" for n in range(10)]
    assert [text for text in said if "river" in text] == [f"river {n}" for n in range(30)]
    assert all(("river" in text) == (name == "a") for text, name in zip(said, sources, strict=True))
    dealt = [list(mixed.portions(worker, 2)) for worker in range(2)]
    assert samples(dealt[n % 2][n // 2] for n in range(len(portions))) == samples(portions)


def test_a_mixture_of_mixed_streams_is_refused():
    inner = make_mixture({"a": line("river", 2)}, weights={"a": 1}, samples=2)
    with pytest.raises(UserError, match="both is a stream without rows"):
        make_mixture({"both": inner}, weights={"both": 1}, samples=2)


@pytest.mark.parametrize(
    ("sources", "numbers", "message"),
    [
        (("a", "b"), {}, "can't be mixed by epochs"),
        (("a", "b"), {"epochs": {"a": 2}}, "can't be mixed by epochs"),
        (("a", "b"), {"weights": {"c": 1}, "samples": 4}, "no source"),
        (("a", "b"), {"weights": {"a": 1}, "samples": 0}, "needs sources and samples"),
        (("a",), {"weights": {"a": 1, "b": 1}, "samples": 4}, "a is streamed and b is not"),
    ],
)
def test_mixtures_of_streams_that_nobody_can_count_are_refused(sources, numbers, message):
    made = {name: line("river", 2, streaming=name in sources) for name in ("a", "b")}
    with pytest.raises(UserError, match=message):
        make_mixture(made, **numbers)
