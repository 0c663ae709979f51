"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import os
import signal

import attrs
import pytest

from tests.same_run import after_step, assert_same_losses_and_tensors, assert_same_run

# Six steps an epoch, the last of one sample; the schedule, the order and dropout all have a state.
CHANGES = {
    "model": {"hf_kwargs": {"attention_dropout": 0.2}},
    "dataloader": {"batch_size": 3, "shuffle": True},
    "lr_scheduler": {"lr_decay_style": "cosine", "warmup_steps": 3},
    "step_scheduler": {"max_steps": 13, "val_every_steps": 2},
}


def with_changes(*changes):
    result = {name: dict(section) for name, section in CHANGES.items()}
    for change in changes:
        for name, section in change.items():
            result[name] = {**result.get(name, {}), **section}
    return result


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Crash(Exception):
    """The process ends without a chance to save."""


def crash():
    raise Crash("pulled the plug")


@pytest.fixture(scope="session")
def validation_set(squad_folder):
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    return {"validation_dataset": section}


@pytest.fixture
def run(automodel, validation_set):
    def start(*changes, arguments=(), folder="run"):
        return automodel(with_changes(validation_set, *changes), *arguments, folder=folder)

    return start


@pytest.fixture(scope="session")
def memory():
    return {}


@pytest.fixture
def unbroken(run, memory, tmp_path_factory):
    """The run that nothing happens to; one for the whole session."""
    if "run" not in memory:
        memory["run"] = run(folder=str(tmp_path_factory.mktemp("unbroken") / "run"))
        assert memory["run"].code == 0, memory["run"].out
    return memory["run"]


# Stopped anywhere, resumed


@pytest.mark.parametrize(
    ("step", "num_workers", "async_save"),
    [
        pytest.param(4, 0, False, marks=pytest.mark.slow),
        (4, 2, True),
        (6, 0, True),  # exactly the end of an epoch
        pytest.param(6, 2, False, marks=pytest.mark.slow),
        (13, 0, False),  # the last step, before it was validated
    ],
)
def test_stopped_and_resumed_is_bitwise_the_unbroken_run(
    run, unbroken, step, num_workers, async_save
):
    how = {"dataloader": {"num_workers": num_workers}, "checkpoint": {"async_save": async_save}}
    with after_step(step, terminate):
        stopped = run(how)
    assert stopped.code == 75, stopped.out
    assert f"after step {step} and saved" in stopped.out
    assert len(stopped.steps) == step
    resumed = run(how)
    assert resumed.code == 0, resumed.out
    assert f"(step {step})" in resumed.out
    assert_same_run(resumed, unbroken)


def test_so_it_is_where_a_fused_update_clips_gradients(run):
    fused = {"optimizer": {"fused": True}}
    whole = run(fused, folder="whole")
    with after_step(6, terminate):
        assert run(fused).code == 75
    assert_same_run(run(fused), whole)


@pytest.mark.parametrize("async_save", [False, True])
def test_crashed_and_resumed_is_bitwise_the_unbroken_run(run, unbroken, async_save):
    """What was logged after the last checkpoint is done again, and logged once."""
    how = {"checkpoint": {"async_save": async_save, "save_every_steps": 3}}
    for step in (5, 11):
        with after_step(step, crash):
            crashed = run(how)
        assert crashed.code == 1
        assert crashed.steps[-1]["step"] == step
    assert_same_run(run(how), unbroken)


def test_crashed_before_the_first_checkpoint_it_starts_again(run, unbroken):
    with after_step(3, crash):
        assert len(run().steps) == 3
    assert_same_run(run(), unbroken)


def test_other_workers_may_go_on(run, unbroken):
    with after_step(4, terminate):
        run({"dataloader": {"num_workers": 2}})
    assert_same_run(run({"dataloader": {"num_workers": 0}}), unbroken)


# Resuming a finished run, and further


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_resuming_a_finished_run_says_so_and_changes_nothing(automodel):
    first = automodel()
    before = contents(first.folder)
    again = automodel()
    assert again.code == 0
    assert "already holds this run, finished at step 4" in again.out
    after = contents(again.folder)
    assert after == before


def test_max_steps_can_be_raised(automodel):
    constant = {"dataloader": {"shuffle": True}}
    whole = automodel(constant | {"step_scheduler": {"max_steps": 6}}, folder="whole")
    automodel(constant)
    longer = automodel(constant | {"step_scheduler": {"max_steps": 6}})
    assert "Going on from" in longer.out
    assert_same_losses_and_tensors(longer, whole)


# --resume, --fresh, and saved configurations


EVERY = {"checkpoint": {"save_every_steps": 1}}


def test_resume_path_goes_back_and_keeps_what_came_after(automodel):
    first = automodel(EVERY)
    older = first.folder / "epoch_0_step_2"
    with after_step(3, crash):
        automodel(EVERY, "--resume", str(older))
    assert first.steps[-1]["step"] == 3
    assert (first.folder / "latest").resolve() == older
    assert first.checkpoints == ["epoch_0_step_1", "epoch_0_step_2"]
    assert (first.folder / "superseded" / "epoch_0_step_4" / "manifest.json").exists()
    again = automodel(EVERY)
    assert f"{older.name} (step 2)" in again.out
    assert [step["step"] for step in again.steps] == [1, 2, 3, 4]


def test_resume_path_of_another_folder_brings_its_log_along(automodel):
    first = automodel(EVERY)
    path = str(first.folder / "epoch_0_step_2")
    branch = automodel(EVERY, "--resume", path, folder="branch")
    assert branch.code == 0, branch.out
    assert_same_losses_and_tensors(branch, first)
    mixed = automodel(EVERY, "--resume", path, folder="branch")
    assert mixed.code == 2
    assert "already holds a run" in mixed.out


def test_resume_none_never_mixes_two_runs(automodel):
    first = automodel(None, "--resume", "none")
    assert first.code == 0
    again = automodel(None, "--resume", "none")
    assert again.code == 2
    assert "already holds a run" in again.out


def test_fresh_starts_a_folder_beside_the_run(automodel, tmp_path):
    first = automodel()
    before = contents(first.folder)
    assert automodel(None, "--fresh").code == 0
    assert contents(first.folder) == before
    assert (tmp_path / "run-2" / "latest").exists()


def test_a_saved_configuration_runs_again_in_a_folder_of_its_own(automodel, tmp_path, capsys):
    from automodel_core.cli import main

    first = automodel()
    before = contents(first.folder)
    assert main(["run", str(first.folder / "latest" / "config.yaml")]) == 0, capsys.readouterr()
    assert contents(first.folder) == before
    assert attrs.evolve(first, folder=tmp_path / "run-2").losses == first.losses


# What may change


def test_another_lr_needs_the_override(automodel):
    automodel()
    longer = {"step_scheduler": {"max_steps": 6}, "optimizer": {"lr": 5e-4}}
    refused = automodel(longer)
    assert refused.code == 2
    assert "optimizer.lr: 0.001 in" in refused.out
    assert "0.0005 in" in refused.out
    assert "--resume-override" in refused.out
    allowed = automodel(longer, "--resume-override")
    assert allowed.code == 0, allowed.out
    assert [step["lr"] for step in allowed.steps] == [1e-3] * 4 + [5e-4] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"hf_kwargs": {"attention_dropout": 0.1}}},
        {"dataloader": {"shuffle": True}},
        {"rng": {"seed": 7}},
        {"dataset": {"limit_dataset_samples": 8}},
    ],
)
def test_another_model_or_order_is_refused_whatever_is_said(automodel, change):
    automodel({"step_scheduler": {"max_steps": 1}})
    refused = automodel(change, "--resume-override")
    assert refused.code == 2
    assert "can't go on with another configuration" in refused.out
    assert f"{next(iter(change))}." in refused.out
    assert "--fresh" in refused.out


# What is no checkpoint of this run


def files_of_a_checkpoint(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_damaged_file_is_named_and_nothing_is_trained(automodel):
    first = automodel({"step_scheduler": {"max_steps": 1}})
    checkpoint = (first.folder / "latest").resolve()
    names = [n for n in files_of_a_checkpoint(checkpoint) if n != "manifest.json"]
    assert {"config.yaml", "training/state.json", "model/model.safetensors"} <= set(names)
    for name in names:
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused = automodel()
        assert refused.code == 2
        assert f"is damaged: {name} has changed" in refused.out
        path.write_bytes(whole)
    assert automodel().code == 0


def test_a_foreign_folder_is_refused(automodel, tiny_model, tmp_path):
    for path in (tiny_model, tmp_path / "nowhere"):
        refused = automodel(None, "--resume", str(path))
        assert refused.code == 2
        assert f"{path} is not a checkpoint of automodel" in refused.out
