"""Faults are planted in real runs: each is noticed by its guard, and no guard cries without one."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from automodel_core.train import build, loop
from automodel_core.train.step import Objective
from tests.same_run import after_step, assert_same_losses_and_tensors

SOON = 20
LONGER = {"step_scheduler": {"max_steps": SOON}}


# Guards


def copied(model, folder):
    shutil.copytree(model, folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("setting", [{}, {"torch_dtype": "bfloat16"}])
def test_no_guard_fires_without_a_fault(automodel, setting):
    run = automodel({"step_scheduler": {"max_steps": 60}, "model": setting})
    assert run.code == 0, run.out
    assert "guard " not in run.out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(automodel, tiny_model, tmp_path, value):
    weights = copied(tiny_model, tmp_path / "model")
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    changes = {"model": {"pretrained_model_name_or_path": str(weights.parent)}}
    run = automodel(LONGER | changes | {"checkpoint": {"save_every_steps": 1}})
    assert run.code == 3
    assert "guard non_finite: The loss of step 1 is nan. Its samples: 0, 1, 2, 3." in run.out
    assert run.checkpoints == []


def test_data_without_a_supervised_token(automodel, monkeypatch):
    prepare = Objective.prepare

    def masked(objective, batch):
        return prepare(objective, batch | {"labels": torch.full_like(batch["labels"], -100)})

    monkeypatch.setattr(Objective, "prepare", masked)
    run = automodel(LONGER)
    assert run.code == 3
    assert "guard no_supervised_tokens: Step 1 has no supervised token" in run.out


def test_a_model_in_which_nothing_trains(automodel, monkeypatch):
    load_model = build.load_model

    def frozen(*arguments):
        loaded = load_model(*arguments)
        loaded.model.requires_grad_(False)
        return loaded

    monkeypatch.setattr(build, "load_model", frozen)
    run = automodel(LONGER)
    assert run.code == 3
    assert "guard nothing_trainable: No parameter of the model requires a gradient" in run.out


@pytest.mark.parametrize(("does", "code"), [("warn", 0), ("stop", 3)])
def test_a_learning_rate_that_jumps(automodel, monkeypatch, does, code):
    rate = loop.learning_rate

    def jumping(step, *arguments):
        return rate(step, *arguments) * (1000 if step == 15 else 1)

    monkeypatch.setattr(loop, "learning_rate", jumping)
    run = automodel(LONGER | {"guards": {"loss_spike": does}})
    assert run.code == code, run.out
    found = re.findall("^guard loss_spike: The loss of step (\\d+) jumped", run.out, re.MULTILINE)
    assert len(found) == 1
    assert int(found[0]) > 15


def test_updates_that_bfloat16_rounds_away(automodel):
    run = automodel(LONGER | {"model": {"torch_dtype": "bfloat16"}, "optimizer": {"lr": 1e-6}})
    assert run.code == 0
    assert run.out.count("guard lost_updates: ") == 1
    assert "of the weights with a gradient did not change in step 1" in run.out


# Disks


def assert_only_the_older_checkpoint_is_there(run):
    assert run.code == 2, run.out
    assert "Traceback" not in run.out
    assert run.checkpoints == ["epoch_0_step_2"]
    assert (run.folder / "latest").resolve().name == "epoch_0_step_2"
    assert AutoModelForCausalLM.from_pretrained(run.folder / "latest" / "model")
    assert not list(run.folder.glob(".saving-*"))


@pytest.mark.parametrize(
    ("limit", "async_save", "save_format"),
    [
        (20_000, False, "safetensors"),  # in the weights
        (127_000, True, "torch_save"),  # past the same weights as safetensors
        (200_000, False, "safetensors"),  # in the optimizer
        (200_000, True, "safetensors"),
    ],
)
def test_a_save_that_fails_halfway_harms_no_older_checkpoint(
    automodel, tmp_path, limit, async_save, save_format
):
    """The system cuts files off as a full disk would; the run goes on once it may write again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    section = {"save_every_steps": 2, "async_save": async_save, "model_save_format": save_format}
    changes = {"checkpoint": section}
    latest = tmp_path / "run" / "latest"

    def cut_off():
        while not latest.exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with after_step(3, cut_off):
            failed = automodel(changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "epoch_0_step_4 could not be written: " in failed.out
    assert "Earlier checkpoints are unharmed" in failed.out
    assert_only_the_older_checkpoint_is_there(failed)
    unbroken = automodel(changes, folder="unbroken")
    assert_same_losses_and_tensors(automodel(changes), unbroken)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs privileges")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Leave no page free."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(os.sysconf("SC_PAGE_SIZE")))


@pytest.mark.parametrize("every", [2, 48], ids=["while saving", "while logging"])
def test_a_disk_that_fills_up_harms_no_older_checkpoint(automodel, small_disk, every):
    """Log lines of 200 bytes reach the next page before step 48."""
    long = {"step_scheduler": {"max_steps": 48}}
    folder = str(small_disk / "run")
    automodel({"step_scheduler": {"max_steps": 2}}, folder=folder)
    with after_step(3, lambda: fill(small_disk)):
        changes = long | {"checkpoint": {"save_every_steps": every, "keep_last": 1}}
        failed = automodel(changes, folder=folder)
    assert "No space left on device" in failed.out
    assert_only_the_older_checkpoint_is_there(failed)
    (small_disk / "ballast").unlink()
    resumed = automodel(changes, folder=folder)
    assert resumed.code == 0, resumed.out
    assert resumed.losses == automodel(long, folder="unbroken").losses
    assert json.loads((resumed.folder / "status.json").read_text())["state"] == "finished"
