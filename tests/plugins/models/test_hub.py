"""Models on the Hub, through the real client and a small Hub of our own on 127.0.0.1.

The client reads its settings when it is imported, so each session is a process of its own; what it
is asked for is sent to it all at once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.models import hub_server

ROOT = Path(__file__).parents[3]

# Tries each request and prints what came of it, as one JSON object per line.
SESSION = """
import json, sys, torch
from automodel_core.errors import UserError
from automodel_models.text import from_pretrained
for name, options in json.loads(sys.argv[1]):
    load = options.pop("load", True)
    try:
        source = from_pretrained(name, **options)
        result = {"revision": source.revision, "weight_bytes": source.weight_bytes,
                  "parameters": source.parameter_count}
        if load:
            model = source.load_model(torch.float32, torch.device("cpu"))
            result |= {"name": model.name_or_path, "tokens": len(source.load_tokenizer())}
    except UserError as error:
        result = {"message": error.message, "fix": error.fix, "argument": error.argument}
    print(json.dumps(result))
"""


def session(requests, cache, endpoint, offline=False):
    """What comes of `requests` in a process of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", SESSION, json.dumps(requests)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(llama_folder, shared):
    """Serves the tiny Llama whole and in shards, its tokenizer alone, and its refusals."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    sharded, bare = shared / "sharded", shared / "bare"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama_folder)
    tokenizer.save_pretrained(sharded)
    tokenizer.save_pretrained(bare)
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model.save_pretrained(sharded, max_shard_size="20KB")
    server = hub_server.start({"tiny/llama": llama_folder, "tiny/half": sharded, "tiny/bare": bare})
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def online(hub, shared):
    """Everything that is asked for while the Hub answers, by name."""
    requests = {
        "good": ("tiny/llama", {}),
        "half": ("tiny/half", {"load": False}),
        "bare": ("tiny/bare", {}),
        "gated": ("tiny/gated", {}),
        "bad token": ("tiny/token", {}),
        "missing": ("tiny/missing", {}),
        "revision": ("tiny/llama", {"revision": "v9"}),
        "broken": ("tiny/broken", {}),
        "silent": ("tiny/silent", {}),
        "nonsense": ("not a name!", {}),
    }
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    results = session(list(requests.values()), shared / "cache", endpoint)
    return dict(zip(requests, results, strict=True))


@pytest.fixture(scope="module")
def offline(online, hub, shared):
    """The same cache afterwards, with HF_HUB_OFFLINE=1."""
    requests = {
        "good": ("tiny/llama", {}),
        "half": ("tiny/half", {}),
        "never": ("tiny/missing", {}),
    }
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    results = session(list(requests.values()), shared / "cache", endpoint, offline=True)
    return dict(zip(requests, results, strict=True))


NAME = "pretrained_model_name_or_path"


def test_a_model_is_fetched_at_a_commit_that_is_kept(online, llama_folder):
    good = online["good"]
    assert good["revision"] == hub_server.COMMIT
    assert good["weight_bytes"] == (llama_folder / "model.safetensors").stat().st_size
    assert good["parameters"] == 30_880
    assert good["name"] == "tiny/llama", "the saved model names the repository, not the cache"
    assert good["tokens"] > 0


def test_no_weights_are_fetched_before_they_are_loaded(online, hub):
    assert online["half"]["weight_bytes"] > 100_000
    fetched = [path for verb, path in hub.asked if verb == "GET" and path.endswith(".safetensors")]
    assert fetched
    assert all("tiny/llama" in path for path in fetched)


@pytest.mark.parametrize(
    ("request_name", "says", "fix", "argument"),
    [
        ("gated", "tiny/gated is gated", "https://huggingface.co/tiny/gated", NAME),
        ("gated", "licence", "HF_TOKEN", NAME),
        ("bad token", "your token read tiny/token (it answers 401)", "HF_TOKEN", NAME),
        ("missing", "no model tiny/missing", "check the spelling", NAME),
        ("revision", "no branch, tag or commit v9", "leave revision out", "revision"),
        ("bare", "tiny/bare has no config.json", "save_pretrained", NAME),
        ("broken", "the Hub answers with error 500", "try again later", NAME),
        ("silent", "can't be reached (Server", "hf download tiny/silent", NAME),
        ("nonsense", "neither a folder here nor a possible name", "OWNER/MODEL", NAME),
    ],
)
def test_each_refusal_has_its_own_screen(online, request_name, says, fix, argument):
    refused = online[request_name]
    assert says in refused["message"]
    assert fix in refused["fix"]
    assert refused["argument"] == argument
    assert "\n" not in refused["message"]


def test_a_cached_model_needs_no_network(online, offline):
    assert offline["good"] == online["good"]


def test_a_half_downloaded_model(offline):
    assert "only half here" in offline["half"]["message"]
    assert "hf download tiny/half" in offline["half"]["fix"]


def test_offline_and_not_cached(offline):
    assert "HF_HUB_OFFLINE is set" in offline["never"]["message"]
    assert "unset HF_HUB_OFFLINE" in offline["never"]["fix"]
