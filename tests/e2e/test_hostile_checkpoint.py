"""A checkpoint from a stranger is read without running anything that it holds."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from automodel_core.train.checkpoint import sha256

# Read when a run goes on; the others are there for whoever opens the model.
READ = {
    "config.yaml",
    "manifest.json",
    "model/config.json",
    "model/model.safetensors",
    "training/rng_0.json",
    "training/state.json",
    "training/optimizer/00001-of-00001.safetensors",
}


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path / "sprung")


@pytest.fixture
def stopped(automodel, tmp_path_factory):
    """A run that may be resumed, after one step."""
    run = automodel({"step_scheduler": {"max_steps": 1}})
    assert run.code == 0, run.out
    return run


def files(checkpoint):
    return sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())


def reseal(checkpoint):
    """What a stranger does too: sizes and hashes that fit."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        name: {
            "bytes": (checkpoint / name).stat().st_size,
            "sha256": sha256(checkpoint / name),
        }
        for name in files(checkpoint)
        if name != "manifest.json"
    }
    path.write_text(json.dumps(manifest))


def plain_pickle(trap):
    return pickle.dumps(trap)


def torch_pickle(trap):
    stream = io.BytesIO()
    torch.save({"weight": trap}, stream)
    return stream.getvalue()


def test_the_trap_works(trap):
    pickle.loads(plain_pickle(trap))
    assert trap.sprung.exists()


@pytest.mark.parametrize("made", [plain_pickle, torch_pickle])
def test_a_pickle_in_any_file_is_refused_by_name_and_not_loaded(automodel, stopped, trap, made):
    checkpoint = (stopped.folder / "latest").resolve()
    names = files(checkpoint)
    assert set(names) >= READ
    for name in names:
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(made(trap))
        refused = automodel()
        assert refused.code == 2, refused.out
        assert Path(name).name in refused.out
        assert not trap.sprung.exists()
        path.write_bytes(whole)


def test_nor_if_the_manifest_vouches_for_it(automodel, stopped, trap):
    checkpoint = (stopped.folder / "latest").resolve()
    kept = checkpoint.parent.parent / "kept"
    shutil.copytree(checkpoint, kept)
    for name in files(checkpoint):
        if name == "manifest.json":
            continue
        shutil.rmtree(stopped.folder)
        shutil.copytree(kept, checkpoint)
        (checkpoint / name).write_bytes(torch_pickle(trap))
        reseal(checkpoint)
        run = automodel()
        assert not trap.sprung.exists()
        assert "Traceback" not in run.out, (name, run.out)
        assert run.code == (2 if name in READ else 0), (name, run.out)
        if name in READ:
            assert f"{checkpoint} is damaged: {name.removesuffix(Path(name).name)}" in run.out


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_in_place_of_safetensors_are_read_as_tensors_only(
    automodel, stopped, trap, zipped
):
    model = (stopped.folder / "latest" / "model").resolve()
    (model / "model.safetensors").unlink()
    content = torch_pickle(trap) if zipped else plain_pickle(trap)
    (model / "pytorch_model.bin").write_bytes(content)
    assert zipfile.is_zipfile(model / "pytorch_model.bin") == zipped
    reseal(model.parent)
    run = automodel()
    assert run.code == 2, run.out
    assert not trap.sprung.exists()


def test_pickles_that_other_readers_look_for_are_left_alone(automodel, stopped, trap):
    checkpoint = (stopped.folder / "latest").resolve()
    for name in (".metadata", "training/.metadata", "training/optimizer/.metadata"):
        (checkpoint / name).write_bytes(plain_pickle(trap))
    for name in ("training/optimizer.pt", "training/rng_state.pth", "model/training_args.bin"):
        (checkpoint / name).write_bytes(torch_pickle(trap))
    reseal(checkpoint)
    run = automodel()
    assert run.code == 0, run.out
    assert not trap.sprung.exists()


def test_python_files_beside_the_weights_do_not_run(automodel, stopped, trap):
    model = (stopped.folder / "latest" / "model").resolve()
    code = f"from pathlib import Path\nPath({str(trap.sprung)!r}).touch()\n"
    for name in ("modeling_llama.py", "configuration_llama.py", "tokenization_llama.py"):
        (model / name).write_text(code)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_llama.LlamaConfig",
        "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
    }
    config["model_type"] = "strange"
    (model / "config.json").write_text(json.dumps(config))
    reseal(model.parent)
    run = automodel()
    assert run.code == 2, run.out
    assert not trap.sprung.exists()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"files": []}',
        '{"files": {}}',
        '{"files": {"config.yaml": 1}}',
        '{"files": {"config.yaml": {}}}',
        '{"files": {"../../config.yaml": {"bytes": 0, "sha256": ""}}}',
        '{"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_of_another_shape_is_refused(automodel, stopped, content):
    (stopped.folder / "latest" / "manifest.json").write_text(content)
    run = automodel()
    assert run.code == 2, run.out
