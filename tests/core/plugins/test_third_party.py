"""Other people's packages, installed by pip into an environment of their own, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

SOURCES = Path(__file__).parents[2] / "fixtures" / "third_party"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder into which pip has installed one of the distributions."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            source = str(SOURCES / name)
            subprocess.run([*PIP, "--no-deps", "--target", folders[name], source], check=True)
        return folders[name]

    return folder


@pytest.fixture
def command(installed):
    """Run `automodel` in an environment that has some of the distributions."""

    def run(*arguments: str, having: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(str(installed(name)) for name in having)
        return subprocess.run(
            [sys.executable, "-m", "automodel_core", *arguments],
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def plugins(command):
    """What `list-plugins --json` says of one distribution, by (kind, name)."""

    def rows(distribution: str, *flags: str, having: tuple[str, ...]) -> dict[tuple, dict]:
        listed = json.loads(command("list-plugins", "--json", *flags, having=having).stdout)
        return {(r["kind"], r["name"]): r for r in listed if r["distribution"] == distribution}

    return rows


@pytest.fixture
def config(base_config, tmp_path):
    """Write the smallest run with some sections changed; returns its file and run folder."""

    def write(name: str, **changes) -> tuple[str, Path]:
        folder = tmp_path / name
        place = {"checkpoint": {"checkpoint_dir": str(folder)}}
        file = tmp_path / f"{name}.yaml"
        with file.open("w") as handle:
            YAML(typ="safe").dump(base_config | place | changes, handle)
        return str(file), folder

    return write


def test_it_is_listed_with_its_owner_and_summary(plugins):
    rows = plugins("automodel-echo", "--check", having=("good",))
    assert {key: row["state"] for key, row in rows.items()} == {
        ("datasets", "echo"): "ok",
        ("losses", "smoothed_ce"): "ok",
        ("peft", "norm_tuning"): "ok",
        ("distributed", "one_message"): "ok",
        ("launchers", "paper"): "ok",
        ("hooks", "echo_log"): "ok",
    }
    echo = rows["datasets", "echo"]
    assert echo["version"] == "0.3.0"
    assert echo["summary"] == "Sentences of counted words, to be echoed."


@pytest.mark.parametrize("name", ["automodel-echo", "echo_log", "automodel-echo/echo"])
def test_it_can_be_disabled(plugins, monkeypatch, name):
    monkeypatch.setenv("AUTOMODEL_DISABLE_PLUGINS", name)
    states = {row["state"] for row in plugins("automodel-echo", having=("good",)).values()}
    assert "disabled" in states


def test_a_broken_one_is_reported(plugins):
    rows = plugins("automodel-broken", having=("broken",))
    assert rows["losses", "broken_name"]["reason"] == "automodel_broken has no Nothing"
    assert "no module automodel_broken.gone" in rows["losses", "broken_module"]["reason"]
    assert rows["losses", "broken_at_import"]["state"] == "ok", "nothing is imported to list it"
    rows = plugins("automodel-broken", "--check", "--kind", "losses", having=("broken",))
    assert {row["state"] for row in rows.values()} == {"broken"}


def test_a_conflicting_one_is_reported_on_both_sides_except_ours(plugins):
    having = ("good", "conflicting")
    theirs = plugins("automodel-conflicting", having=having)
    assert theirs["datasets", "echo"]["state"] == "conflict"
    assert theirs["aliases", "torch.optim.AdamW"]["state"] == "broken"
    assert plugins("automodel-echo", having=having)["datasets", "echo"]["state"] == "conflict"
    assert theirs["losses", "masked_ce"]["state"] == "conflict"
    assert plugins("automodel-core", having=having)["losses", "masked_ce"]["state"] == "ok"


def test_an_incompatible_one_is_reported(plugins):
    row = plugins("automodel-incompatible", having=("incompatible",))["losses", "future"]
    assert row["state"] == "incompatible"
    assert row["reason"].startswith("it needs automodel-core>=900, and this is ")


def test_what_cannot_be_used_is_refused_at_its_line(command, config):
    for loss, having in (
        ("future", "incompatible"),
        ("broken_name", "broken"),
        ("broken_at_import", "broken"),
    ):
        file, folder = config(loss, loss_fn={"_target_": loss})
        refused = command("run", file, having=(having,))
        assert refused.returncode == 2, refused.stderr
        assert loss in refused.stdout + refused.stderr
        assert not folder.exists()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "training.jsonl").open()]


def test_it_is_used_by_name(command, config):
    file, folder = config(
        "echo",
        dataset={"_target_": "echo", "num_samples": 16, "words": ["a", "b"]},
        loss_fn={"_target_": "smoothed_ce", "smoothing": 0.2},
    )
    done = command("run", file, having=("good",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 sentences to echo" in done.stdout
    assert losses(folder)[-1] < losses(folder)[0]
    diary = [line.split(maxsplit=1)[1] for line in (folder / "diary.txt").read_text().splitlines()]
    assert diary[0] == "start of 4 steps"
    assert [line.partition(" loss")[0] for line in diary[1:]] == [
        "step 1", "step 2", "step 3", "step 4", "end after 4",
    ]  # fmt: skip


def test_a_typo_in_its_arguments_is_refused_without_importing_it(command, config):
    file, _ = config("typo", dataset={"_target_": "echo", "num_sampels": 16})
    refused = command("validate", file, having=("good",))
    assert refused.returncode == 2
    assert "num_samples" in refused.stdout + refused.stderr


def test_a_run_that_does_not_name_it_has_bitwise_the_same_losses(command, config, automodel):
    shuffled = {"dataloader": {"batch_size": 4, "shuffle": True}}
    without = automodel(shuffled, folder="without")
    assert without.code == 0, without.out
    file, folder = config("with", **shuffled)
    done = command("run", file, having=("good", "broken", "incompatible"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(folder) == without.losses


def test_its_parallel_manager_trains_on_two_ranks_as_one_process_does(command, config, automodel):
    batches = {
        "step_scheduler": {"max_steps": 4, "global_batch_size": 8},
        "dataloader": {"batch_size": 2},
    }
    one = automodel(batches, folder="one")
    assert one.code == 0, one.out
    file, folder = config("two", **batches, distributed={"_target_": "one_message"})
    done = command("run", file, "--nproc-per-node", "2", having=("good",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(folder) == pytest.approx(one.losses, rel=1e-5)


def test_its_scheduler_is_one_class(command, config, tmp_path):
    wall = tmp_path / "wall.txt"
    file, folder = config("queued", launcher={"_target_": "paper", "wall": str(wall), "nodes": 2})
    line = f"2 x python -m automodel_core run {file} optimizer.lr=1e-5\n"
    shown = command("run", file, "--dry-run", "optimizer.lr=1e-5", having=("good",))
    assert (shown.returncode, shown.stdout) == (0, line), shown.stderr
    assert not wall.exists()
    assert command("run", file, "optimizer.lr=1e-5", having=("good",)).returncode == 0
    assert wall.read_text() == line
    assert not folder.exists()


def test_a_conflict_with_our_names_does_not_harm_a_file_that_means_ours(command, config):
    file, _ = config("ours", loss_fn={"_target_": "masked_ce"})
    valid = command("validate", file, having=("conflicting",))
    assert valid.returncode == 0, valid.stdout + valid.stderr
