"""A data set of the Hub is tokenised once, until the Hub has another version of it."""

import json
import os
import subprocess
import sys

import pytest

from tests.plugins.models import hub_server

SESSION = """
import sys
from automodel_datasets import making
from automodel_datasets.text import make_text_dataset
from transformers import AutoTokenizer
making.WORTH = 0.0
made = make_text_dataset("tiny/words", tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
print(len(made), type(made.samples).__name__)
"""

STREAM = """
import sys
from automodel_datasets.text import make_text_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
made = make_text_dataset("tiny/words", tokenizer=tokenizer, streaming=True)
portions = list(made.portions(0, 1))
samples = [portion.samples[i] for portion in portions for i in range(len(portion.samples))]
print(*(tokenizer.decode(each["input_ids"], skip_special_tokens=True) for each in samples))
"""


@pytest.fixture
def start(tmp_path, tiny_model):
    """Starts a process that reads the Hub's data set: how many samples, and from where."""
    words = tmp_path / "words"
    words.mkdir()
    server = hub_server.start({"tiny/words": words})

    def session(texts=None, offline=False, program=SESSION):
        if texts is not None:
            lines = "\n".join(json.dumps({"text": text}) for text in texts)
            (words / "train.jsonl").write_text(lines)
            server.commit = hub_server.etag(words / "train.jsonl")
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "AUTOMODEL_TOKEN_CACHE": str(tmp_path / "kept"),
        }
        command = [sys.executable, "-c", program, str(tiny_model)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        entries = len(list((tmp_path / "kept").glob("*/entry.json")))
        return *done.stdout.splitlines()[-1].split(), entries

    yield session
    server.shutdown()


@pytest.mark.slow
def test_a_version_is_tokenised_once_and_another_anew(start):
    assert start(["one", "two"]) == ("2", "StoredTexts", 1)
    assert start() == ("2", "StoredTexts", 1)
    assert start(offline=True) == ("2", "StoredTexts", 1)
    assert start(["one", "two", "three"]) == ("3", "StoredTexts", 2)


@pytest.mark.slow
def test_a_set_of_the_hub_is_streamed(start, tmp_path):
    assert start(["one", "two", "three"], program=STREAM) == ("one", "two", "three", 0)
    assert not list((tmp_path / "home").rglob("*.arrow"))
