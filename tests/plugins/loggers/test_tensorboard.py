"""TensorBoard: what its own reader finds in the event files."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOGGED = {"loggers": ["tensorboard"]}


def scalars(folder):
    """Every curve as a list of (step, value)."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(each.step, each.value) for each in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.fixture
def validated(squad_folder):
    validation = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    return {**LOGGED, "validation_dataset": validation}


def test_every_figure_of_every_step(automodel, validated):
    run = automodel(validated)
    curves = scalars(run.folder / "tensorboard")
    for name in run.steps[0].keys() - {"step"}:
        expected = [(step["step"], pytest.approx(step[name])) for step in run.steps]
        assert curves[f"train/{name}"] == expected
    assert curves["validation/loss"] == [(4, pytest.approx(run.validations[-1]["loss"]))]


def test_a_resumed_run_takes_back_the_steps_that_it_takes_again(automodel):
    first = automodel({**LOGGED, "step_scheduler": {"max_steps": 4, "ckpt_every_steps": 2}})
    before = first.losses
    changed = {**LOGGED, "optimizer": {"lr": 0.1}, "step_scheduler": {"max_steps": 5}}
    checkpoint = first.folder / "epoch_0_step_2"
    run = automodel(changed, "--resume", str(checkpoint), "--resume-override")
    losses = scalars(run.folder / "tensorboard")["train/loss"]
    assert losses == [(step["step"], pytest.approx(step["loss"])) for step in run.steps]
    assert len(losses) == 5
    assert run.losses[3] != before[3]


def test_save_dir_keeps_runs_apart(automodel, tmp_path):
    section = {"_target_": "tensorboard", "save_dir": str(tmp_path / "curves")}
    automodel({"loggers": [section]})
    automodel({"loggers": [section]}, folder="other")
    assert len(scalars(tmp_path / "curves" / "run")["train/loss"]) == 4
    assert len(scalars(tmp_path / "curves" / "other")["train/loss"]) == 4


def test_the_configuration_is_shown(automodel):
    run = automodel(LOGGED)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert b'"lr": 0.001' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_missing_package_is_refused_before_weights_are_read(automodel, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = automodel(LOGGED)
    assert run.code == 2
    assert "TensorBoard isn't installed here." in run.out
    assert "pip install tensorboard" in run.out
    assert not (run.folder / "training.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_refused_at_its_line(automodel, tmp_path):
    (tmp_path / "file").write_text("")
    section = {"_target_": "tensorboard", "save_dir": str(tmp_path / "file" / "curves")}
    run = automodel({"loggers": [section]})
    assert run.code == 2
    assert "cannot be made: Not a directory" in run.out
    assert "curves}" in run.out, "the line is shown"
