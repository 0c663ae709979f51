"""`automodel run` starts the processes itself, through torchrun's launcher."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import Started, logged

LONG = {"step_scheduler": {"max_steps": 400}, "dataloader": {"shuffle": True}}
BOTH = ("--nproc-per-node", "2")


@pytest.fixture
def launched(tmp_path, config_file):
    """Start `automodel run` with a changed base configuration; returns a Started."""

    def start(changes: dict, *arguments: str, folder: str = "run") -> Started:
        place = tmp_path / folder
        command = [sys.executable, "-m", "automodel_core", "run", config_file(changes, place)]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return Started(process, place, logged(place))

    return start


def test_it_trains_as_one_process_does_and_prints_torchruns_line(launched, automodel):
    """Every second step has one sample, so that a rank has none."""
    five = {
        "dataset": {"limit_dataset_samples": 5},
        "step_scheduler": {"max_steps": 4, "num_epochs": 2, "global_batch_size": 4},
    }
    found = launched({**five, "dataloader": {"batch_size": 2}}, *BOTH).finish()
    expected = automodel(five, folder="one")
    assert found.code == 0, found.out
    assert len(found.losses) == 4
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert "torchrun --standalone --nproc-per-node 2 -m automodel_core run" in found.out
    assert found.out.count("Precision (") == 1, "one rank talks"


def test_a_signal_saves_on_all_ranks_the_run_goes_on_and_a_killed_rank_is_the_one_error(launched):
    run = launched(LONG, *BOTH)
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGTERM)
    stopped = run.finish()
    assert stopped.code == 75, stopped.out
    step = stopped.steps[-1]["step"]
    assert f"Stopped by SIGTERM after step {step} and saved" in stopped.out
    assert [name.rpartition("_")[2] for name in stopped.checkpoints] == [str(step)]

    resumed = launched(LONG, *BOTH)
    resumed.wait_for_step(step + 3)
    ranks = psutil.Process(resumed.process.pid).children()
    ranks[-1].kill()
    killed_at = time.monotonic()
    done = resumed.finish()
    steps = [each["step"] for each in done.steps]
    assert steps == list(range(1, len(steps) + 1))
    assert done.code == 128 + signal.SIGKILL, done.out
    assert "Rank 1 of 2 was ended by SIGKILL" in done.out
    assert "Traceback" not in done.out
    assert time.monotonic() - killed_at < 60


@pytest.mark.slow
def test_what_is_wrong_is_said_once_with_its_exit_code(launched):
    found = launched({"distributed": {"_target_": "fsdp2", "tp_size": 3}}, *BOTH).finish()
    assert found.code == 2, found.out
    assert found.out.count("tp_size 3 x cp_size 1 = 3 ranks") == 1, found.out
    assert "Traceback" not in found.out


@pytest.mark.slow
def test_a_guard_keeps_its_exit_code(launched):
    found = launched({"optimizer": {"lr": 1e30}, "step_scheduler": {"max_steps": 30}}, *BOTH)
    done = found.finish()
    assert done.code == 3, done.out
    assert done.out.count("guard non_finite") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_someone_elses_torchrun_restarts_a_run_that_goes_on(rank, tmp_path, config_file, automodel):
    """Elastic restart: a rank is killed, all are started again and go on as if nothing had been, in
    the folder that --fresh had opened."""
    steps = {"max_steps": 30, "global_batch_size": 4}
    changes = {"step_scheduler": steps, "dataloader": {"batch_size": 1, "shuffle": True}}
    unbroken = automodel(changes, folder="unbroken")
    changes |= {"checkpoint": {"save_every_steps": 5}}
    place = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*torchrun, "--max-restarts=1", "-m", "automodel_core", "run", config_file(changes, place),
         "--fresh"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = Started(process, place, b"")
    run.wait_for_step(12)
    psutil.Process(process.pid).children()[rank].kill()
    done = run.finish()
    assert done.code == 0, done.out
    assert "Going on from" in done.out
    assert [each["step"] for each in done.steps] == list(range(1, 31))
    assert done.losses == pytest.approx(unbroken.losses, rel=1e-5)


@pytest.mark.slow
def test_nccl_without_gpus_is_refused_on_several_ranks(launched):
    done = launched({"dist_env": {"backend": "nccl"}}, *BOTH).finish()
    assert done.code == 2, done.out
    assert "dist_env.backend=gloo" in done.out
