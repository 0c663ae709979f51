"""A real process is asked to stop, and later goes on as if nothing had happened."""

import signal
import time

import pytest

from automodel_core.train.signals import StopRequest
from tests.same_run import after_step, assert_same_run
from tests.variants import mostly_slow

# Steps long enough to be hit: eight micro-batches of one padded sample.
CHANGES = {
    "model": {"hf_kwargs": {"attention_dropout": 0.2}},
    "dataloader": {
        "batch_size": 1,
        "shuffle": True,
        "collate_fn": {"_target_": "default_collater", "pad_to_multiple_of": 128},
    },
    "step_scheduler": {"max_steps": 8, "grad_acc_steps": 8, "val_every_steps": 4},
}


@pytest.fixture(scope="session")
def memory():
    return {}


@pytest.fixture
def changes(squad_folder):
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    return CHANGES | {"validation_dataset": section}


@pytest.fixture
def unbroken(automodel, changes, memory, tmp_path_factory):
    if "run" not in memory:
        memory["run"] = automodel(changes, folder=str(tmp_path_factory.mktemp("whole") / "run"))
    return memory["run"]


@pytest.mark.parametrize("name", mostly_slow(["SIGTERM", "SIGINT", "SIGUSR1"], fast=["SIGTERM"]))
def test_a_signal_ends_the_run_after_its_step_and_saves(
    started, automodel, changes, unbroken, name
):
    run = started(changes)
    run.wait_for_step(2)
    run.process.send_signal(getattr(signal, name))
    stopped = run.finish()
    assert stopped.code == 75, stopped.out
    step = stopped.steps[-1]["step"]
    assert 2 <= step < 8
    assert f"Stopped by {name} after step {step} and saved" in stopped.out
    assert [int(name.rpartition("_")[2]) for name in stopped.checkpoints] == [step]
    resumed = automodel(changes)
    assert f"(step {step})" in resumed.out
    assert_same_run(resumed, unbroken)


def test_a_second_signal_drops_the_step_and_saves_its_start(started, automodel, changes, unbroken):
    run = started(changes)
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    run.process.send_signal(signal.SIGINT)
    stopped = run.finish()
    assert stopped.code == 75, stopped.out
    assert "Traceback" not in stopped.out
    step = stopped.steps[-1]["step"]
    resumed = automodel(changes)
    assert f"(step {step})" in resumed.out
    assert_same_run(resumed, unbroken)


def test_a_third_signal_ends_the_run_unsaved(automodel, changes, unbroken):
    every = changes | {"checkpoint": {"save_every_steps": 2}}

    def thrice():
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)

    with after_step(3, thrice):
        stopped = automodel(every)
    assert stopped.code == 130, stopped.out
    assert "Traceback" not in stopped.out
    assert stopped.checkpoints == ["epoch_0_step_2"]
    assert_same_run(automodel(every), unbroken)


def test_a_signal_before_the_first_step_ends_the_run_with_nothing_to_save(
    started, automodel, changes, unbroken
):
    slow = {"generation_eval": {"dataset": changes["validation_dataset"], "max_new_tokens": 64}}
    run = started(changes | slow)
    while not (run.folder / "status.json").exists():
        assert run.process.poll() is None, run.process.communicate()[0]
        time.sleep(0.002)
    run.process.send_signal(signal.SIGTERM)
    stopped = run.finish()
    assert stopped.code == 75, stopped.out
    assert "Stopped by SIGTERM; no step was under way" in stopped.out
    assert stopped.checkpoints == []
    assert_same_run(automodel(changes), unbroken)


def test_a_worker_that_inherits_the_handlers_takes_a_signal_for_its_parent_s(monkeypatch):
    request = StopRequest(patient=True)
    monkeypatch.setattr("os.getpid", lambda: -1)
    for _ in range(3):
        request.handle(signal.SIGINT, None)
    assert not request
