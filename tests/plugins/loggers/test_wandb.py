"""Weights & Biases: the real library, offline, and online against a server of our own."""

import json
import sys

import pytest

from tests.plugins.loggers.server import serving

KEY = "abcdef0123" * 4
OFFLINE = {"wandb": {"mode": "offline", "project": "tiny", "entity": "us", "name": "first"}}


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_figure_of_every_step(automodel, squad_folder, offline_runs):
    validation = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    run = automodel({**OFFLINE, "validation_dataset": validation})
    [written] = offline_runs(run.folder)
    steps = [row for row in written.rows if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in steps] == run.losses
    [validated] = [row for row in written.rows if "validation/loss" in row]
    assert validated["step"] == 4
    assert validated["validation/loss"] == run.validations[-1]["loss"]
    assert written.exit_code == 0


def test_project_entity_name_group_tags_and_save_dir(automodel, tmp_path, offline_runs):
    more = {"save_dir": str(tmp_path / "elsewhere"), "group": "sweep", "tags": ["small", "quick"]}
    automodel({"wandb": {**OFFLINE["wandb"], **more}})
    [written] = offline_runs(tmp_path / "elsewhere")
    sent = written.run
    assert (sent.project, sent.entity, sent.display_name) == ("tiny", "us", "first")
    assert (sent.run_group, list(sent.tags)) == ("sweep", ["small", "quick"])


def test_the_effective_configuration_is_what_is_sent(automodel, monkeypatch, offline_runs):
    monkeypatch.setenv("SOMEONE", "Ada")
    run = automodel({"wandb": {**OFFLINE["wandb"], "name": "${SOMEONE}", "api_key": KEY}})
    [written] = offline_runs(run.folder)
    assert written.config["step_scheduler"]["max_steps"] == 4
    assert written.config["clip_grad_norm"] == 1.0, "a default"
    assert written.config["wandb"]["api_key"] == "***"
    assert written.config["wandb"]["name"] == "${SOMEONE}", "as it was written"
    assert written.run.display_name == "Ada", "what it stands for"


@pytest.mark.parametrize("written", [KEY, "${THE_KEY}"])
def test_the_api_key_is_in_no_file(automodel, monkeypatch, written):
    monkeypatch.setenv("THE_KEY", KEY)
    run = automodel({"wandb": {**OFFLINE["wandb"], "api_key": written}})
    assert run.code == 0
    assert KEY not in run.out
    assert len(files(run.folder / "wandb")) > 3
    assert not [path for path in files(run.folder) if KEY.encode() in path.read_bytes()]


def test_the_command_line_is_not_sent(automodel, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["automodel", "run", "config.yaml", f"wandb.api_key={KEY}"])
    run = automodel(OFFLINE, f"wandb.api_key={KEY}")
    sent = files(run.folder / "wandb")
    assert len(sent) > 3
    assert not [path for path in sent if KEY.encode() in path.read_bytes()]


def test_a_resumed_run_keeps_its_id(automodel, offline_runs):
    run = automodel(OFFLINE)
    automodel({**OFFLINE, "step_scheduler": {"max_steps": 6}})
    first, second = offline_runs(run.folder)
    assert first.run.run_id == second.run.run_id
    assert [row["step"] for row in second.rows] == [5, 6]


def test_another_run_has_another_id(automodel, offline_runs):
    first, second = automodel(OFFLINE), automodel(OFFLINE, folder="other")
    ids = {offline_runs(run.folder)[0].run.run_id for run in (first, second)}
    assert len(ids) == 2


def test_wandb_mode_is_honoured(automodel, monkeypatch, offline_runs):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = automodel({"wandb": {}})
    assert len(offline_runs(run.folder)) == 1


def test_enable_false_leaves_it_out(automodel):
    run = automodel({"wandb": {"enable": False, "project": "tiny"}})
    assert run.code == 0
    assert not (run.folder / "wandb").exists()


def test_no_login_is_refused_before_weights_are_read(automodel):
    run = automodel({"wandb": {"project": "tiny"}})
    assert run.code == 2
    assert "There is no login to W&B on this machine." in run.out
    assert "mode: offline" in run.out
    assert "config.yaml:" in run.out
    assert not (run.folder / "training.jsonl").exists()


def test_a_missing_package_is_refused_before_weights_are_read(automodel, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = automodel(OFFLINE)
    assert run.code == 2
    assert "wandb isn't installed here." in run.out
    assert not (run.folder / "training.jsonl").exists()


def test_an_unknown_key_is_refused_with_the_nearest(automodel):
    run = automodel({"wandb": {"projct": "tiny"}})
    assert run.code == 2
    assert "did you mean `project`" in run.out


def test_a_key_written_in_loggers_is_refused(automodel):
    """There it would be an argument like any other, and be saved with them."""
    run = automodel({"loggers": [{"_target_": "wandb", "mode": "offline", "api_key": KEY}]})
    assert run.code == 2
    assert "The engine sets `api_key` itself." in run.out


@pytest.fixture
def server(monkeypatch):
    with serving(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def test_online_the_key_opens_the_door_and_is_told_to_nobody(automodel, server, tmp_path):
    run = automodel({"wandb": {"api_key": KEY, "project": "tiny", "name": "first"}})
    assert run.code == 0
    assert server.keys == {KEY}
    assert not [body for body in server.received if KEY in body]
    assert not [path for path in files(run.folder / "wandb") if KEY.encode() in path.read_bytes()]
    assert not (tmp_path / "netrc").exists(), "wandb.login would have written it there"
    config = json.loads(server.upserts[0]["config"])
    assert config["wandb"]["value"]["api_key"] == "***"
    assert (server.upserts[0]["project"], server.upserts[0]["displayName"]) == ("tiny", "first")


def test_online_a_resumed_run_goes_on_under_its_id(automodel, server):
    section = {"wandb": {"api_key": KEY}}
    automodel(section)
    automodel({**section, "step_scheduler": {"max_steps": 6}})
    (first, existed), (second, exists) = server.inits
    assert first == second
    assert (existed, exists) == (False, True)


def test_online_a_wrong_key_is_refused_before_weights_are_read(automodel, server, monkeypatch):
    monkeypatch.setenv("THE_KEY", "x" * 40)
    run = automodel({"wandb": {"api_key": "${THE_KEY}"}})
    assert run.code == 2
    assert "user is not logged in" in run.out
    assert "x" * 40 not in run.out
    assert not (run.folder / "training.jsonl").exists()
