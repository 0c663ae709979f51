"""Hostile files from strangers, given to `validate` and to `run` as a user would."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from ruamel.yaml import YAML

from automodel_core.cli import main

TARGETS = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "importlib.import_module",
    "torch.load",
    "torch.hub.load",
    "pickle.loads",
    "torch.optim.adam.torch.os.system",
    "transformers.utils.hub.os.system",
    "torch.optim.Adam.__init__.__globals__",
    "hostile.py:run",
]

PLACES = {
    "optimizer": lambda target: {"optimizer": target},
    "loss": lambda target: {"loss_fn": target},
    "collator": lambda target: {"dataloader": {"batch_size": 4, "collate_fn": target}},
    "nested": lambda target: {"optimizer": {"_target_": "adamw", "lr": [0, {"deep": target}]}},
    "held-out": lambda target: {"validation_dataset": target},
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that exists once an attack has been executed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.py").write_text("def run(*a, **k): open('canary', 'w')\n")
    return tmp_path / "canary"


@pytest.fixture
def attack(base_config, tmp_path, canary, capsys):
    """Give a configuration to a command; returns its exit code and what it printed."""

    def run(command: str, **changes) -> tuple[int, str]:
        place = {"checkpoint": {"checkpoint_dir": str(tmp_path / "run")}}
        file = tmp_path / "config.yaml"
        with file.open("w") as handle:
            YAML(typ="safe").dump(base_config | place | changes, handle)
        code = main([command, str(file)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", TARGETS)
def test_targets(attack, canary, tmp_path, command, place, name):
    target = {"_target_": name, "command": "touch canary", "args": "touch canary", "shell": True}
    code, printed = attack(command, **PLACES[place](target))
    assert code == 2, printed
    assert name in printed
    assert "config.yaml:" in printed
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hostile_model(tiny_model, tmp_path):
    """A copy of a good model folder to be spoilt."""
    folder = tmp_path / "hostile_model"
    shutil.copytree(tiny_model, folder)
    (folder / "hostile_code.py").write_text("open('canary', 'w')\nclass Hostile: ...\n")
    return folder


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("consent", [None, False, True], ids=["silent", "false", "true"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder(attack, canary, hostile_model, file, consent):
    classes = {
        "AutoConfig": "hostile_code.Hostile",
        "AutoModelForCausalLM": "hostile_code.Hostile",
        "AutoTokenizer": ["hostile_code.Hostile", "hostile_code.Hostile"],
    }
    unknown = {"model_type": "hostile"} if file == "config.json" else {}
    change_json(hostile_model / file, auto_map=classes, **unknown)
    model = {"_target_": "causal_lm", "pretrained_model_name_or_path": str(hostile_model)}
    if consent is not None:
        model["trust_remote_code"] = consent
    code, printed = attack("run", model=model)
    assert not canary.exists()
    if file == "config.json" or consent:
        assert code == 2, printed


class Bomb:
    """Unpickling it runs code."""

    def __reduce__(self):
        return (open, ("canary", "w"))


def test_weights_as_pickle(attack, canary, hostile_model):
    (hostile_model / "model.safetensors").unlink()
    (hostile_model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb()}))
    model = {"_target_": "causal_lm", "pretrained_model_name_or_path": str(hostile_model)}
    code, printed = attack("run", model=model)
    assert not canary.exists()
    assert code == 2, printed


def test_a_pickle_among_the_training_state(attack, canary, base_config, tmp_path):
    assert attack("run")[0] == 0
    (training,) = (tmp_path / "run").glob("epoch_*/training")
    for file in training.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.write_bytes(pickle.dumps(Bomb()))
    attack("run", step_scheduler={"max_steps": 8})
    assert not canary.exists()
