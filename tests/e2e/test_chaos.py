"""A real run is killed without warning, again and again, and ends as the run that never was."""

import random
import time

import pytest

from tests.same_run import assert_same_run

# It saves and validates nearly all the time, so that kills fall into every phase.
CHANGES = {
    "model": {"hf_kwargs": {"attention_dropout": 0.2}},
    "dataloader": {"batch_size": 3, "shuffle": True},
    "lr_scheduler": {"lr_decay_style": "cosine"},
    "step_scheduler": {"max_steps": 60, "val_every_steps": 6},
    "checkpoint": {"save_every_steps": 2, "keep_last": 2, "keep_best": "loss"},
}

# How long the whole run takes on a fast machine, when it saves so often.
SECONDS = 1.5


@pytest.fixture
def changes(squad_folder):
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    return CHANGES | {"validation_dataset": section}


@pytest.fixture(scope="session")
def memory():
    return {}


@pytest.fixture
def kill_and_compare(started, automodel, changes, memory, tmp_path_factory):
    """Kill -9 at instants that nothing in the run is told of; then let it finish."""
    if "run" not in memory:
        memory["run"] = automodel(changes, folder=str(tmp_path_factory.mktemp("whole") / "run"))
        assert memory["run"].code == 0, memory["run"].out
    unbroken = memory["run"]

    def check(*, kills, async_save):
        same = changes | {"checkpoint": {**changes["checkpoint"], "async_save": async_save}}
        chance = random.Random(kills)
        for _ in range(kills):
            run = started(same)
            run.wait_for_step(1)
            time.sleep(chance.uniform(0, SECONDS / kills))
            run.process.kill()
            assert run.finish().code == -9
        finished = automodel(same)
        assert finished.code == 0, finished.out
        assert_same_run(finished, unbroken)
        assert finished.checkpoints == unbroken.checkpoints
        assert not list(finished.folder.glob(".saving-*"))

    return check


@pytest.mark.parametrize(
    ("kills", "async_save"), [pytest.param(2, False, marks=pytest.mark.slow), (1, True)]
)
def test_killed_at_random_instants_the_run_ends_as_the_unbroken_one(
    kill_and_compare, kills, async_save
):
    kill_and_compare(kills=kills, async_save=async_save)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("async_save", [False, True])
def test_killed_ten_times_the_run_ends_as_the_unbroken_one(kill_and_compare, async_save):
    kill_and_compare(kills=10, async_save=async_save)
