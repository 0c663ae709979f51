"""`automodel chat`: through a pipe, and in a real terminal."""

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from automodel_core.cli import main
from tests.tiny import VOCABULARY, tiny_llama, tiny_tokenizer

LONGEST = 12


def write_readable(folder, *, chat=True, endless=False):
    """A tiny model that says something else to every prompt, in letters alone."""
    tokenizer = tiny_tokenizer(folder, chat)
    length = 32768 if endless else 2048
    tiny_llama(folder, initializer_range=0.4, max_position_embeddings=length)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    said = {token for token, text in enumerate(texts) if text.strip().isascii()}
    said = {token for token in said if texts[token].strip().isalnum()}
    said |= set() if endless else {tokenizer.eos_token_id}
    unsaid = sorted(set(range(VOCABULARY)) - said)
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": unsaid}))
    return folder


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    return write_readable(tmp_path_factory.mktemp("talkative"))


@pytest.fixture
def chat(monkeypatch, capsys):
    """Say lines to a model; returns the exit code, the answers and the notes."""

    def run(model, said, *options):
        typed = said if isinstance(said, bytes) else "".join(f"{line}\n" for line in said).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
        code = main(["chat", str(model), "--max-new-tokens", str(LONGEST), *options])
        return (code, *capsys.readouterr())

    return run


def answers_of_transformers(folder, said, system="", adapter=None):
    """What transformers alone answers, turn after turn of one conversation."""
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    messages, answers = [{"role": "system", "content": system}] if system else [], []
    for line in said:
        messages.append({"role": "user", "content": line})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ends = tokenizer.eos_token_id
        out = model.eval().generate(
            **inputs, max_new_tokens=LONGEST, do_sample=False, eos_token_id=ends, pad_token_id=ends
        )
        new = out[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


SAID = ["Hello", "What is 3 plus one?", "And 4?"]


def test_a_conversation_is_that_of_plain_transformers(chat, talkative):
    code, answers, notes = chat(talkative, SAID)
    assert code == 0, notes
    assert answers == "".join(f"{each}\n" for each in answers_of_transformers(talkative, SAID))


def test_reset_and_system_begin_a_new_conversation(chat, talkative):
    said = [*SAID[:2], "/reset", *SAID[:2], "/system Be brief.", *SAID[:2], "/exit", "Never said"]
    expected = answers_of_transformers(talkative, SAID[:2])
    briefly = answers_of_transformers(talkative, SAID[:2], "Be brief.")
    assert briefly != expected
    code, answers, notes = chat(talkative, said)
    assert code == 0, notes
    assert answers.split("\n")[:-1] == [*expected, *expected, *briefly]
    assert chat(talkative, SAID[:2], "--system", "Be brief.")[1].split("\n")[:-1] == briefly


def test_a_command_that_there_is_not_is_told_and_not_said(chat, talkative):
    _, answers, notes = chat(talkative, ["/restart", *SAID[:1]])
    assert answers.split("\n")[:-1] == answers_of_transformers(talkative, SAID[:1])
    assert "There is no /restart" in notes


def test_what_is_too_long_is_told_and_the_conversation_goes_on(chat, talkative):
    said = [SAID[0], "?" * 3000, SAID[1]]
    code, answers, notes = chat(talkative, said)
    assert code == 0
    assert answers.split("\n")[:-1] == answers_of_transformers(talkative, SAID[:2])
    assert "and the model has room for 2,048" in notes


def test_an_empty_answer_is_told(chat, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_readable(tmp_path))
    others = [token for token in range(VOCABULARY) if token != tokenizer.eos_token_id]
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": others}))
    code, answers, notes = chat(tmp_path, SAID[:1])
    assert (code, answers) == (0, "\n")
    assert "The answer is empty." in notes


def test_broken_bytes_do_no_harm(chat, talkative):
    code, answers, notes = chat(talkative, b"caf\xe9\nHello\n")
    assert code == 0, notes
    assert answers.count("\n") == 2


def test_an_adapter_is_compared_with_its_base(automodel, chat, talkative, monkeypatch):
    run = automodel(
        {
            "model": {"pretrained_model_name_or_path": str(talkative)},
            "peft": {"_target_": "lora", "dim": 4, "alpha": 64},
            "optimizer": {"lr": 5e-2},
        }
    )
    monkeypatch.setenv("COLUMNS", "400")
    code, table, notes = chat(run.folder, SAID[:2], "--compare-base")
    assert code == 0, notes
    base = answers_of_transformers(talkative, SAID[:2])
    tuned = answers_of_transformers(talkative, SAID[:2], adapter=run.folder / "latest" / "model")
    assert base != tuned
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row.split("│")[1:3]] for row in rows] == [
        list(pair) for pair in zip(base, tuned, strict=True)
    ]


def test_a_whole_model_is_compared_with_what_it_was(automodel, chat, talkative, monkeypatch):
    run = automodel({"model": {"pretrained_model_name_or_path": str(talkative)}})
    monkeypatch.setenv("COLUMNS", "400")
    code, table, notes = chat(run.folder, SAID[:1], "--compare-base")
    assert code == 0, notes
    row = next(line for line in table.splitlines() if line.startswith("│"))
    expected = [
        answers_of_transformers(folder, SAID[:1])[0]
        for folder in (talkative, run.folder / "latest" / "model")
    ]
    assert [cell.strip() for cell in row.split("│")[1:3]] == expected


def test_a_plain_model_has_nothing_to_be_compared_with(chat, talkative):
    code, _, notes = chat(talkative, SAID, "--compare-base")
    assert code == 2
    assert "nothing says what it was trained from" in notes


def test_a_model_without_a_chat_template_is_asked_as_in_training(automodel, chat, tmp_path):
    base = write_readable(tmp_path / "base", chat=False)
    run = automodel({"model": {"pretrained_model_name_or_path": str(base)}})
    code, answers, notes = chat(run.folder, ["What is one?", "/system Be brief.", "/reset"])
    assert code == 0
    assert "asked as in training: Question: ... Answer:" in notes
    assert "no place for a system message" in notes
    folder = run.folder / "latest" / "model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    inputs = tokenizer("Question: What is one? Answer:", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    new = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers.strip() == new.strip()
    assert chat(run.folder, [], "--system", "Be brief.")[0] == 2


def test_top_p_without_a_temperature_is_refused(chat, talkative):
    code, _, notes = chat(talkative, SAID, "--top-p", "0.5")
    assert code == 2
    assert "add --temperature 1" in notes


def own_terminal():
    """So that Ctrl-C is a signal, also where the tests were started to ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat in a process of its own, on a terminal of its own."""

    def __init__(self, *words):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "automodel_core", "chat", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=own_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.screen = ""

    def type(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, text, since=0):
        """Until `text` is on the screen, after its first `since` characters."""
        end = time.monotonic() + 120
        while text not in self.screen[since:]:
            assert time.monotonic() < end, self.screen
            self.screen += self.read()
        return self.screen.index(text, since) + len(text)

    def read(self):
        """What is new on the screen, if there is anything soon."""
        ready = select.select([self.ours], [], [], 0.1)[0]
        return os.read(self.ours, 4096).decode() if ready else ""

    def wait_for_more(self):
        """Until there is something new on the screen."""
        before = len(self.screen)
        while len(self.screen) == before:
            self.screen += self.read()


@pytest.fixture
def terminal(tmp_path):
    """A chat whose model never ends its answers by itself."""
    folder = write_readable(tmp_path / "endless", endless=True)
    started = Terminal(str(folder), "--max-new-tokens", "30000")
    yield started
    started.process.kill()
    started.process.wait()
    os.close(started.ours)


def test_in_a_terminal_answers_stream_stop_at_ctrl_c_and_ctrl_d_leaves(terminal):
    asked = terminal.wait_for("> ")
    assert "Ctrl-D leaves" in terminal.screen
    terminal.type("Hello\n")
    echoed = terminal.wait_for("Hello", asked)
    for _ in range(5):  # the answer grows while the model is writing
        terminal.wait_for_more()
    assert terminal.screen[echoed:].strip().replace(" ", "").isalnum()
    terminal.type("\x03")
    stopped = terminal.wait_for("Stopped.", echoed)
    terminal.wait_for("> ", stopped - 2)
    terminal.type("/reset\n")
    told = terminal.wait_for("A new conversation.", stopped)
    terminal.wait_for("> ", told)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
