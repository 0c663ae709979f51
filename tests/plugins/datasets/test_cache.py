"""What was tokenised once is found again, and only while all that it was made of is the same."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from automodel_datasets import cache, making, stored
from automodel_datasets.authoring import texts, tokens
from automodel_datasets.chat import ChatTemplate  # noqa: F401  imported before reading is recorded
from automodel_datasets.conversations import make_chat_dataset
from automodel_datasets.masking import TokenisedText
from automodel_datasets.reading import recorded
from automodel_datasets.text import make_text_dataset


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Everything is worth keeping, in a place of its own."""
    monkeypatch.setattr(making, "WORTH", 0.0)
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def data(tmp_path):
    """Texts, and conversations, one of which is broken."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"text": f"The sum of {n} and one is {n + 1}."}) for n in range(20)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    turns = [{"role": "user", "content": "What is 1?"}, {"role": "assistant", "content": "One."}]
    chats = [json.dumps({"messages": turns})] * 3 + ['{"messages": "none"}']
    (folder / "chats.jsonl").write_text("\n".join(chats))
    return folder


def samples(dataset):
    return [(list(each["input_ids"]), list(each["labels"])) for each in dataset]


def is_kept(dataset) -> bool:
    return isinstance(dataset.samples, stored.StoredTexts)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_what_is_found_again_is_what_was_made(kind, data, tokenizer, monkeypatch):
    def make():
        if kind == "text":
            return make_text_dataset(str(data / "texts.jsonl"), tokenizer=tokenizer)
        return make_chat_dataset(
            str(data / "chats.jsonl"), tokenizer=tokenizer, on_bad_row="skip", mask_reasoning=True
        )

    monkeypatch.setenv(cache.PLACE, "")
    plain = make()
    assert not is_kept(plain)
    monkeypatch.undo()
    monkeypatch.setattr(making, "WORTH", 0.0)
    monkeypatch.setenv(cache.PLACE, str(data / "kept"))
    first, second = make(), make()
    assert is_kept(first)
    assert is_kept(second)
    assert samples(plain) == samples(first) == samples(second)
    assert plain.notes == first.notes == second.notes
    assert list(plain.lengths) == list(second.lengths)
    assert samples(pickle.loads(pickle.dumps(second))) == samples(plain)


def entries(kept: Path) -> int:
    return len(list(kept.glob(f"*/{making.ENTRY}")))


def test_another_file_option_template_or_tokenizer_is_another_entry(data, tokenizer, kept):
    path = data / "chats.jsonl"

    def make(**options):
        chosen = {"tokenizer": tokenizer, "on_bad_row": "skip", **options}
        return make_chat_dataset(str(path), **chosen)

    make(), make()
    assert entries(kept) == 1
    make(train_on="all")
    assert entries(kept) == 2
    tokenizer.chat_template = tokenizer.chat_template + " "
    make()
    assert entries(kept) == 3
    tokenizer.add_tokens(["What is"])
    make()
    assert entries(kept) == 4
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    shorter = make()
    assert entries(kept) == 5
    assert len(shorter) == 2


def test_a_changed_file_of_the_same_size_is_read_anew(data, tokenizer):
    path = data / "texts.jsonl"
    make_text_dataset(str(path), tokenizer=tokenizer)
    path.write_text(path.read_text().replace("sum", "Sum"))
    changed = make_text_dataset(str(path), tokenizer=tokenizer)
    assert "Sum" in tokenizer.decode(changed[0]["input_ids"])


def test_a_new_file_that_a_glob_finds_is_read(data, tokenizer):
    def make():
        return make_text_dataset(str(data / "texts*.jsonl"), tokenizer=tokenizer)

    assert len(make()) == 20
    (data / "texts-2.jsonl").write_text(json.dumps({"text": "One more."}))
    assert len(make()) == 21


def test_parquet_which_python_does_not_open_is_read_anew(tmp_path, tokenizer):
    path = tmp_path / "texts.parquet"
    for words in (["one"], ["two", "three"]):
        pyarrow.parquet.write_table(pyarrow.table({"text": words}), path)
        assert len(make_text_dataset(str(path), tokenizer=tokenizer)) == len(words)


AUTHORS = {
    "its own file": "open('words.txt').read().split()",
    "a folder": "sorted(__import__('os').listdir('words'))",
}


@pytest.mark.parametrize("reads", AUTHORS)
def test_whatever_an_author_opens_counts(reads, tmp_path, monkeypatch, tokenizer, kept):
    """Files that no argument names."""
    source = "from automodel_datasets.authoring import texts\n"
    source += f"@texts\ndef words(times: int = 1):\n    yield from {AUTHORS[reads]} * times\n"
    (tmp_path / "my_words.py").write_text(source)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a").touch()
    (tmp_path / "words.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_words", raising=False)
    from my_words import words

    assert len(words(tokenizer=tokenizer)) == len(words(tokenizer=tokenizer)) == 1
    assert entries(kept) == 1
    (tmp_path / "words.txt").write_text("a b")
    (tmp_path / "words" / "b").touch()
    assert len(words(tokenizer=tokenizer)) == 2
    assert len(words(2, tokenizer=tokenizer)) == 4


def test_another_source_of_the_author_is_another_entry(tmp_path, monkeypatch, tokenizer, kept):
    for letter in "ab":
        (tmp_path / f"of_{letter}.py").write_text(
            "from automodel_datasets.authoring import texts\n"
            f"@texts\ndef letters():\n    yield '{letter}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import of_a
    import of_b

    of_b.letters.__wrapped__.__module__ = "of_a"
    one, other = of_a.letters(tokenizer=tokenizer), of_b.letters(tokenizer=tokenizer)
    assert samples(one) != samples(other)
    assert entries(kept) == 2


def test_what_comes_from_the_network_or_cannot_be_named_is_not_kept(tokenizer, kept):
    @texts
    def asked():
        import socket

        with socket.socket() as connection:
            connection.connect_ex(("127.0.0.1", 9))
        yield "an answer"

    @tokens
    def called(make):
        yield make()

    assert not is_kept(asked(tokenizer=tokenizer))
    assert not is_kept(called(lambda: [1, 2], tokenizer=tokenizer))
    assert entries(kept) == 0


def test_what_is_quick_is_not_kept(data, tokenizer, kept, monkeypatch):
    monkeypatch.setattr(making, "WORTH", 60.0)
    assert not is_kept(make_text_dataset(str(data / "texts.jsonl"), tokenizer=tokenizer))
    assert entries(kept) == 0


SLOW_WRITER = """
import sys, time
from automodel_datasets import making, stored
from automodel_datasets.text import make_text_dataset
from transformers import AutoTokenizer
making.WORTH = 0.0
add = stored.Writer.add
def slowly(writer, texts):
    print("writing", flush=True)
    add(writer, texts)
    time.sleep(60 if sys.argv[3] == "hang" else 1)
stored.Writer.add = slowly
made = make_text_dataset(sys.argv[1], tokenizer=AutoTokenizer.from_pretrained(sys.argv[2]))
print(len(made), type(made.samples).__name__, flush=True)
"""


def writer(data, model, how="go"):
    command = [sys.executable, "-c", SLOW_WRITER, str(data / "texts.jsonl"), str(model), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_leaves_nothing_that_is_read(data, tokenizer, tiny_model, kept):
    process = writer(data, tiny_model, "hang")
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.wait()
    (left,) = kept.glob(f"{making.UNFINISHED}*")
    assert cache.find(kept, left.name) is None
    made = make_text_dataset(str(data / "texts.jsonl"), tokenizer=tokenizer)
    assert is_kept(made)
    assert len(made) == 20
    old = time.time() - 2 * making.ABANDONED
    os.utime(left, (old, old))
    making.clean(kept)
    assert not left.exists()
    assert len(made) == 20


@pytest.mark.slow
def test_of_two_processes_one_tokenises_and_both_read_it(data, tiny_model, kept):
    both = [writer(data, tiny_model) for _ in range(2)]
    told = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [lines[-1] for lines in told] == ["20 StoredTexts"] * 2
    assert sum(lines.count("writing") for lines in told) == 1
    assert entries(kept) == 1


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.integers(1, 9).flatmap(
            lambda n: st.tuples(
                st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n),
                st.lists(st.tuples(st.integers(0, n), st.integers(0, n)), max_size=3),
            )
        ),
        min_size=1,
        max_size=6,
    )
)
def test_texts_are_read_as_they_were_written(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("texts")
    written = [TokenisedText(np.array(ids, np.int32), spans) for ids, spans in drawn]
    halves = written[: len(drawn) // 2], written[len(drawn) // 2 :]
    parts = [stored.Arrays.of(half) for half in halves]
    file = stored.Writer(folder)
    for part in parts:
        file.add(part)
    in_memory = stored.Texts(stored.Arrays.joined(parts))
    with (folder / "ids").open("ab") as cut:  # as a full disk does
        cut.write(b"cut")
    left = stored.Texts(file.so_far())
    (folder / "ids").write_bytes((folder / "ids").read_bytes()[:-3])
    read = stored.StoredTexts(folder)
    for other in (in_memory, left):
        assert [each.sample() for each in other] == [each.sample() for each in read]
    assert [(each.ids.tolist(), list(each.spans)) for each in read] == [
        (ids, spans) for ids, spans in drawn
    ]
    assert read.lengths.tolist() == [len(ids) for ids, _ in drawn]
    with pytest.raises(IndexError):
        read[len(drawn)]


def test_imports_and_what_is_written_are_no_data(tmp_path):
    with recorded() as reading:
        (tmp_path / "out.txt").write_text("x")
        import colorsys  # noqa: F401
    assert str(tmp_path / "out.txt") not in reading.files
    assert not any("colorsys" in path for path in reading.files)
