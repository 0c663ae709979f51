"""Real runs of a tiny model on tiny data, started as a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
from ruamel.yaml import YAML

# Without a GPU, Triton's interpreter runs its kernels. It must know before anything imports it.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

QUESTIONS = [
    {
        "id": str(number),
        "title": "numbers",
        "context": f"The sum of {number} and one is {number + 1}.",
        "question": f"What is {number} plus one?",
        "answers": {"text": [str(number + 1)], "answer_start": [0]},
    }
    for number in range(24)
]


@attrs.frozen
class Finished:
    """A run that has ended.

    Attributes:
        code: Exit code.
        folder: Its run folder.
        out: What it printed.
    """

    code: int
    folder: Path
    out: str

    @property
    def steps(self) -> list[dict]:
        return [json.loads(x) for x in (self.folder / "training.jsonl").read_text().splitlines()]

    @property
    def validations(self) -> list[dict]:
        return [json.loads(x) for x in (self.folder / "validation.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("epoch_*"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A tiny Llama with a chat tokenizer, as a transformers folder."""
    from tests.tiny import tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_tokenizer(folder, chat=True)
    tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def squad_folder(tmp_path_factory) -> Path:
    """SQuAD's columns, in files of our own."""
    folder = tmp_path_factory.mktemp("squad")
    for split, rows in (("train", QUESTIONS[:16]), ("validation", QUESTIONS[16:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


@pytest.fixture
def base_config(tiny_model, squad_folder) -> dict:
    """The smallest run: four steps of four samples."""
    return {
        "model": {"_target_": "causal_lm", "pretrained_model_name_or_path": str(tiny_model)},
        "dataset": {"_target_": "squad", "dataset_name": str(squad_folder), "split": "train"},
        "step_scheduler": {"max_steps": 4},
        "dataloader": {"batch_size": 4},
        "optimizer": {"_target_": "adamw", "lr": 1e-3},
    }


@pytest.fixture
def config_file(tmp_path, base_config):
    """Write the base configuration with some of its sections changed, for one run folder."""

    def write(changes: dict | None, run_folder: Path) -> str:
        place = {"checkpoint": {"checkpoint_dir": str(run_folder)}}
        config = merged(merged(base_config, place), changes or {})
        path = tmp_path / "config.yaml"
        with path.open("w") as handle:
            YAML(typ="safe").dump(config, handle)
        return str(path)

    return write


@pytest.fixture
def automodel(tmp_path, config_file, capsys):
    """Run the base configuration with some of its sections changed; returns a Finished."""

    from automodel_core.cli import main

    def run(changes: dict | None = None, *arguments: str, folder: str = "run") -> Finished:
        run_folder = tmp_path / folder
        one = ["--nproc-per-node", "1"]  # however many GPUs there are
        code = main(["run", config_file(changes, run_folder), *one, *arguments])
        printed = capsys.readouterr()
        return Finished(code, run_folder, printed.out + printed.err)

    return run


def logged(folder: Path) -> bytes:
    """The training log so far."""
    log = folder / "training.jsonl"
    return log.read_bytes() if log.exists() else b""


@attrs.frozen
class Started:
    """A run in a process of its own.

    Attributes:
        process: The process; its output is one stream.
        folder: Its run folder.
        left: The log as an earlier process left it.
    """

    process: subprocess.Popen
    folder: Path
    left: bytes

    def wait_for_step(self, step: int) -> None:
        """Until this process has written that step to the log."""
        while (log := logged(self.folder)) == self.left or log.count(b"\n") < step:
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.002)

    def finish(self) -> Finished:
        out, _ = self.process.communicate(timeout=120)
        return Finished(self.process.returncode, self.folder, out)


@pytest.fixture
def started(tmp_path, config_file):
    """Start the base configuration, changed, as another process; returns a Started."""
    processes = []

    def start(changes: dict | None = None, *arguments: str, folder: str = "run") -> Started:
        run_folder = tmp_path / folder
        left = logged(run_folder)
        command = ["-m", "automodel_core", "run", config_file(changes, run_folder), *arguments]
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return Started(process, run_folder, left)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def merged(base: dict, changes: dict) -> dict:
    """`base` with `changes` laid over it, mapping by mapping; None removes a key."""
    result = dict(base)
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(base.get(name), dict):
            result[name] = merged(base[name], value)
        else:
            result[name] = value
    return result
