"""Worker processes make what this process would, in the same order, and end with it."""

import json
import os
import signal
import subprocess
import sys
import time
from operator import methodcaller

import psutil
import pytest
from transformers import AutoTokenizer

from automodel_core.errors import UserError
from automodel_core.progress import heard_by
from automodel_datasets import workers
from automodel_datasets.conversations import make_chat_dataset
from automodel_datasets.instructions import make_instruction_dataset
from automodel_datasets.text import make_text_dataset


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several chunks of a few rows each, all but the first in processes, and no cache."""
    monkeypatch.setenv("AUTOMODEL_TOKEN_CACHE", "")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    monkeypatch.setattr(workers, "CHUNK", 7)


@pytest.fixture
def alone(monkeypatch):
    """Nobody helps."""
    return lambda: monkeypatch.setattr(workers, "PATIENCE", 1e9)


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def data(tmp_path):
    """Fifty rows of each kind; some of the chats are broken, and some answers empty."""
    words = [("the river " * (n % 9 + 1), f"town {n}" if n % 10 else "") for n in range(50)]
    chats = [{"messages": turns(a, b) if b else "none"} for a, b in words]
    rows = {
        "chats": chats,
        "texts": [{"text": a + b} for a, b in words],
        "pairs": [{"question": a, "answer": b} for a, b in words],
    }
    for name, of_name in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_name)))
    return tmp_path


def made(data, tokenizer):
    """A data set of each kind: its samples and its notes."""
    mapping = {"question": "question", "answer": "answer"}
    sets = (
        make_chat_dataset(
            str(data / "chats.jsonl"), tokenizer=tokenizer, on_bad_row="skip", max_length=60
        ),
        make_text_dataset(str(data / "texts.jsonl"), tokenizer=tokenizer, max_length=16),
        make_instruction_dataset(
            str(data / "pairs.jsonl"), mapping, tokenizer=tokenizer, on_bad_row="skip"
        ),
    )
    return [([each[i] for i in range(len(each))], each.notes) for each in sets]


def test_samples_order_and_notes_are_those_of_one_process(data, tokenizer, alone):
    by_processes = made(data, tokenizer)
    alone()
    assert by_processes == made(data, tokenizer)
    assert all(len(samples) > 20 for samples, _ in by_processes)
    assert [bool(notes) for _, notes in by_processes] == [True, False, True]


def test_a_row_that_is_refused_in_a_process_is_told_by_its_line(data, tokenizer):
    lines = (data / "chats.jsonl").read_text().splitlines()
    good = [line for line in lines if "none" not in line]
    (data / "chats.jsonl").write_text("\n".join([*good[:30], '{"messages": 3}', *good[30:]]))
    with pytest.raises(UserError, match=r"chats.jsonl:31: "):
        make_chat_dataset(str(data / "chats.jsonl"), tokenizer=tokenizer)


def test_what_cannot_be_sent_is_worked_on_here():
    def doubled(_):
        return lambda items: [2 * each() for each in items]

    items = [lambda n=n: n for n in range(20)]
    (*here,) = workers.in_order(items, doubled, None)
    assert [each for chunk in here for each in chunk] == list(range(0, 40, 2))


def test_how_far_it_is_can_be_heard(data, tokenizer):
    heard = []
    with heard_by(lambda done, share: heard.append((done, share))):
        make_text_dataset(str(data / "texts.jsonl"), tokenizer=tokenizer)
    assert heard[-1][0] == "50 rows tokenised"
    assert len(heard) == 8


@pytest.mark.slow
def test_if_a_process_is_killed_nothing_is_lost():
    def items():
        for number in range(400):
            if number == 200:
                mine = psutil.Process().children(recursive=True)
                workers_of = [each for each in mine if "popen_loky" in " ".join(each.cmdline())]
                workers_of[0].kill()
            yield number

    done = workers.in_order(items(), methodcaller, "copy")
    assert [each for chunk in done for each in chunk] == list(range(400))


ENDLESS = """
import sys
from automodel_datasets import workers
from automodel_datasets.authoring import texts
from transformers import AutoTokenizer
from automodel_core.progress import heard_by
workers.PATIENCE = 0.0
@texts
def endless():
    while True:
        yield "on and on"
with heard_by(lambda done, share: print(done, flush=True)):
    endless(tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_however_it_ends_no_process_stays(how, tiny_model):
    command = [sys.executable, "-c", ENDLESS, str(tiny_model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True)
    assert "20,000 rows tokenised\n" in process.stdout
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(how)
    deadline = time.monotonic() + 20
    while any(each.is_running() and each.status() != "zombie" for each in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.1)
    process.stdout.close()
    process.wait(20)
