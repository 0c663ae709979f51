"""Faults planted on one of two ranks: one screen says which rank, where, and what it was doing."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import attrs
import pytest

from tests.conftest import Finished, Started, logged

FAULTY = "tests.fixtures.faults."
RUN = {
    "step_scheduler": {"max_steps": 8, "global_batch_size": 4},
    "dataloader": {"batch_size": 1, "shuffle": True},
    "dist_env": {"watchdog_seconds": 5, "timeout_minutes": 0.3},
}


@attrs.frozen
class Ended:
    """A run that went wrong, and how long that took."""

    done: Finished
    seconds: float

    @property
    def out(self) -> str:
        return self.done.out

    def log(self, rank: int) -> str:
        return (self.done.folder / "logs" / f"rank_{rank}.log").read_text()


@pytest.fixture
def ending(tmp_path, config_file):
    """Run two ranks, on one of which something goes wrong."""

    def run(changes: dict, **environment: str) -> Ended:
        place = tmp_path / "run"
        command = ["run", config_file({**RUN, **changes}, place), "--nproc-per-node", "2"]
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "automodel_core", *command, "--allow", FAULTY],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
        done = Started(process, place, logged(place)).finish()
        return Ended(done, time.monotonic() - started)

    return run


def in_the_loss(fault: str, rank: int = 1, step: int = 6) -> dict:
    """In the second micro-batch of step 3; a rank has two in a step."""
    return {
        "loss_fn": {"_target_": f"{FAULTY}FaultyLoss", "fault": fault, "rank": rank, "step": step}
    }


def in_the_loader(fault: str, rank: int = 1, step: int = 6) -> dict:
    collate = {"_target_": f"{FAULTY}faulty_collate", "fault": fault, "rank": rank, "step": step}
    return {"dataloader": {**RUN["dataloader"], "collate_fn": collate}}


def numbers_after(words: str, out: str) -> set[int]:
    """The sample numbers that follow."""
    return {int(each) for each in re.search(rf"{words}:? ([\d, ]+)", out)[1].split(",")}


def test_a_stopped_rank_is_named_with_its_step_samples_and_stack_and_the_run_ends(ending):
    ended = ending(in_the_loss("stop"))
    assert ended.done.code == 4, ended.out
    assert ended.out.count("Watchdog") == 1, ended.out
    assert "no answer for" in ended.out
    assert re.search(r"rank 1 on .*: step 3, samples", ended.out)
    assert len(numbers_after("step 3, samples", ended.out)) == 2
    assert "in FaultyLoss" in ended.out or "faults.py" in ended.out
    assert "Traceback" not in ended.out
    status = json.loads((ended.done.folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "no answer" in status["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_error_is_shown_with_rank_host_step_samples_and_log(ending, rank):
    ended = ending(in_the_loss("fail", rank))
    assert ended.done.code == 1, ended.out
    assert ended.out.count("Traceback") == 1, ended.out
    assert "ArithmeticError: the planted fault" in ended.out
    assert re.search(rf"Rank {rank} of 2 on \S+, in step 3; its samples: \d+, \d+\.", ended.out)
    assert f"logs/rank_{rank}.log" in ended.out
    assert "the planted fault" in ended.log(rank)


@pytest.mark.slow
def test_a_rank_that_stops_before_its_first_step_is_named(ending):
    ended = ending(in_the_loss("stop", step=0))
    assert ended.done.code == 4, ended.out
    assert re.search(r"rank 1 on .*: step 0, samples none yet", ended.out)
    assert "in load" in ended.out


@pytest.mark.slow
def test_rank_0_stopped_is_named_by_the_next_rank(ending):
    ended = ending(in_the_loss("stop", rank=0))
    assert ended.done.code == 4, ended.out
    assert re.search(r"no answer for \d+ s", ended.out)
    assert re.search(r"rank 0 on .*: step 3, samples", ended.out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loader_that_is_late_is_named_and_the_run_goes_on(ending, rank, automodel):
    ended = ending(in_the_loader("dawdle", rank), DAWDLE="9")
    assert ended.done.code == 0, ended.out
    assert ended.out.count("Watchdog: 1 rank(s) have waited") == 1, ended.out
    assert re.search(rf"rank {rank} on .*: step 3, samples", ended.out)
    assert "in dawdle" in ended.out
    alone = automodel({k: v for k, v in RUN.items() if k != "dist_env"}, folder="alone")
    assert ended.done.losses == pytest.approx(alone.losses, rel=1e-5)


@pytest.mark.slow
def test_a_loader_that_hangs_ends_the_run_when_its_time_is_over(ending):
    ended = ending(in_the_loader("dawdle"))
    assert ended.done.code == 4, ended.out
    assert "in dawdle" in ended.out
    assert ended.out.count("The run can't go on") == 1


@pytest.mark.slow
def test_a_rank_that_works_is_named_and_goes_on(ending):
    ended = ending(in_the_loss("work"), DAWDLE="9")
    assert ended.done.code == 0, ended.out
    assert "It computes, reads or writes; the run goes on." in ended.out


@pytest.mark.slow
def test_without_their_launcher_ranks_say_so_and_end(ending):
    ended = ending(in_the_loss("kill the launcher"), DAWDLE="20")
    logs = ended.log(0) + ended.log(1)
    assert logs.count("the launcher, or whoever kept the ranks' store, is gone") == 1
    assert ended.seconds < 60


@pytest.mark.slow
def test_no_secret_of_the_configuration_is_in_a_log(ending):
    secret = {"wandb": {"enable": False, "api_key": "${SECRET_TOKEN}"}}
    ended = ending({**in_the_loss("say the secret"), **secret}, SECRET_TOKEN="tell-nobody-4711")
    assert ended.done.code == 1, ended.out
    assert "the token was" in ended.log(1)
    assert "tell-nobody-4711" not in ended.out + ended.log(0) + ended.log(1)


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_are_both_named_with_their_stacks(ending):
    ended = ending(in_the_loss("wait for nobody"))
    assert ended.done.code == 4, ended.out
    assert "all ranks have waited for each other" in ended.out
    assert "in wait_for_nobody" in ended.out
    assert "in _engine_run_backward" in ended.out
    assert ended.seconds < 40


@pytest.mark.slow
def test_a_mismatched_collective_that_gloo_ends_leaves_its_stack_in_the_log(ending):
    ended = ending(in_the_loss("join nobody"))
    assert ended.done.code == 128 + signal.SIGABRT, ended.out
    assert "was ended by SIGABRT" in ended.out
    assert any("join_nobody" in ended.log(rank) for rank in (0, 1))


@pytest.mark.slow
def test_the_rank_whose_loss_is_not_finite_is_named(ending):
    ended = ending(in_the_loss("nan"))
    assert ended.done.code == 3, ended.out
    assert "The loss of step 3 is nan, on rank 1." in ended.out


@pytest.mark.slow
def test_a_killed_rank_is_named(ending):
    ended = ending(in_the_loss("kill"))
    assert ended.done.code == 128 + signal.SIGKILL, ended.out
    assert "Rank 1 of 2 was ended by SIGKILL" in ended.out
    assert re.search(r"Last seen: rank 1 on .*: step \d, samples .*logs/rank_1.log", ended.out)
    assert "Traceback" not in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_that_ranks_error(ending, rank):
    save = {"checkpoint": {"save_every_steps": 4}, "distributed": {"_target_": "fsdp2"}}
    ended = ending({**in_the_loss("fill the disk", rank, step=2), **save})
    assert ended.done.code == 2, ended.out
    assert ended.out.count("File too large") == 1, ended.out
    assert "free some space" in ended.out
    assert "Traceback" not in ended.out
