"""Jobs on a real Slurm: the commands of docs/slurm.md, on two nodes that are names of this machine.

Debian has all that is needed: `apt-get install slurm-wlm munge`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.plugins.launchers.cluster import DAEMONS, Cluster, missing, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

TOKEN = "hf_a-token-that-nobody-may-see"
STEPS = 150
AWKWARD = 'it\'s a #job $HOME 100%j \\ "x" `id`'

# The commands of docs/slurm.md; `test_slurm.py` compares them.
SAVE = "scancel --signal=USR1 {job}"
REQUEUE = "scontrol requeue {job}"
CANCEL = "scancel {job}"


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as running:
        yield running


class Submitted:
    """A job that `automodel run` has submitted.

    Attributes:
        job: Its number.
        place: The directory that it was submitted from.
        out: What was printed.
    """

    def __init__(self, cluster: Cluster, place: Path, *words: str) -> None:
        self.cluster, self.place = cluster, place
        done = subprocess.run(
            [sys.executable, "-m", "automodel_core", "run", "my.yaml",
             "--allow", "slurm.", *words],
            cwd=place, capture_output=True, text=True, timeout=120,
            env=cluster.environ | {"MY_TOKEN": TOKEN, "HOME": str(place),
                                   "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.out = done.stdout + done.stderr
        assert done.returncode == 0, self.out
        self.job = self.out.split("Submitted job ")[1].partition(":")[0]

    @property
    def log(self) -> str:
        path = self.place / "slurm" / f"two-nodes-{self.job}.log"
        return path.read_text() if path.exists() else ""

    @property
    def steps(self) -> list[dict]:
        path = self.place / "checkpoints" / "training.jsonl"
        return [json.loads(x) for x in path.open()] if path.exists() else []

    def tell(self, command: str) -> None:
        self.cluster(*command.format(job=self.job).split())

    def told(self) -> str:
        return f"{self.cluster.facts(self.job)}\n{self.log}\n{self.cluster.told()}"

    def wait_for_step(self, step: int) -> None:
        until(lambda: len(self.steps) >= step, 180, self.told)

    def wait_for(self, state: str) -> None:
        """Raises AssertionError at once if the job ends in another."""

        def reached() -> bool:
            found = self.cluster.state(self.job)
            assert found in (state, "PENDING", "RUNNING", "COMPLETING"), self.told()
            return found == state

        until(reached, 240, self.told)


@pytest.fixture
def submit(cluster, base_config, tmp_path):
    """Submit the base configuration, two nodes of one rank each, from a directory of its own."""

    def run(*words: str, folder: str = "here", steps: int = STEPS) -> Submitted:
        place = tmp_path / folder
        place.mkdir()
        config = base_config | {
            "step_scheduler": {"max_steps": steps, "global_batch_size": 4},
            "dataloader": {"batch_size": 2, "shuffle": True},
            "slurm": {
                "job_name": "two-nodes",
                "nodes": 2,
                "ntasks_per_node": 1,
                "time": "00:10:00",
                "hf_token": "${MY_TOKEN}",
                "hf_home": "~/its cache",
                "env": {"AWKWARD": AWKWARD},
                "setup": ['echo "set up on $SLURMD_NODENAME with $AWKWARD and $HF_HOME"'],
            },
        }
        with (place / "my.yaml").open("w") as handle:
            YAML(typ="safe").dump(config, handle)
        return Submitted(cluster, place, *words)

    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The losses of the run that nobody stops; kept from the first test that has them."""
    return {}


def assert_unbroken(run: Submitted, submit, unbroken: dict) -> None:
    """The steps of a run that was stopped are those of one that was not, to the last bit."""
    if not unbroken:
        other = submit(folder="unbroken")
        other.wait_for("COMPLETED")
        assert len(other.steps) == STEPS, other.told()
        assert "Going on from" not in other.log
        unbroken["losses"] = [each["loss"] for each in other.steps]
    assert [each["step"] for each in run.steps] == list(range(1, STEPS + 1))
    assert [each["loss"] for each in run.steps] == unbroken["losses"]


def test_a_signal_saves_and_the_job_begins_again_as_if_it_had_never_stopped(
    cluster, submit, unbroken
):
    run = submit()
    run.wait_for_step(5)
    cache = run.place / "its cache"
    assert f"set up on n1 with {AWKWARD} and {cache}\n" in run.log
    assert cache.is_dir()
    run.tell(SAVE)
    cluster.begins_again(run.job)
    assert "Stopped by SIGUSR1" in run.log
    stopped = len(run.steps)
    assert 5 <= stopped < STEPS
    run.wait_for("COMPLETED")
    assert f"(step {stopped})" in run.log.split("Going on from")[1]
    assert run.log.count("Going on from") == 1
    assert_unbroken(run, submit, unbroken)
    written = [path for path in run.place.rglob("*") if path.is_file()]
    assert run.place / "slurm" / f"two-nodes-{run.job}.log" in written
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in run.out


def test_a_job_that_an_operator_requeues_goes_on_in_the_folder_that_fresh_opened(
    cluster, submit, unbroken
):
    run = submit("--fresh")
    run.wait_for_step(5)
    run.tell(REQUEUE)
    cluster.begins_again(run.job)
    run.wait_for("COMPLETED")
    assert "Going on from" in run.log
    assert_unbroken(run, submit, unbroken)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster, submit):
    run = submit(steps=20000)
    run.wait_for_step(5)
    run.tell(CANCEL)
    run.wait_for("CANCELLED")
    until(lambda: "Stopped by SIGTERM" in run.log, 60, run.told)
    assert list((run.place / "checkpoints").glob("epoch_*_step_*"))
    until(lambda: not cluster("squeue", "-h"), 60, run.told)
    assert cluster.facts(run.job)["Restarts"] == "0"


def test_ahead_of_its_time_limit_a_job_saves_and_begins_again(cluster, submit):
    run = submit("slurm.time=00:02:00", "slurm.seconds_to_save=60", steps=100000)
    assert "--signal=USR1@60" in next((run.place / "slurm").glob("*.sbatch")).read_text()
    run.wait_for_step(5)
    until(lambda: "Stopped by SIGUSR1" in run.log, 180, run.told)
    cluster.begins_again(run.job)
    until(lambda: "Going on from" in run.log, 120, run.told)
    run.tell(CANCEL)
    run.wait_for("CANCELLED")


def test_a_mistake_ends_the_job_with_its_code(cluster, submit):
    run = submit("model.pretrained_model_name_or_path=./nothing-here")
    run.wait_for("FAILED")
    assert cluster.facts(run.job)["ExitCode"] == "2:0", run.told()
    assert "nothing-here" in run.log
    assert "Traceback" not in run.log


KILLED = """\
import os, signal
from tests.plugins.launchers.cluster import Cluster, until
with Cluster() as cluster:
    job = cluster("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 4711.5").strip()
    until(lambda: cluster.state(job) == "RUNNING", 60, cluster.told)
    print(cluster.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_neither_daemons_nor_jobs_outlive_a_test_that_is_killed():
    before = {each.pid for each in psutil.process_iter()}
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("slurm-"), done.stderr
    until(lambda: not folder.exists(), 30, lambda: f"{folder} is still there")
    new = [each for each in psutil.process_iter(["name", "cmdline"]) if each.pid not in before]
    assert not [each for each in new if each.info["name"] in (*DAEMONS, "slurmstepd")]
    assert not [each for each in new if "4711.5" in (each.info["cmdline"] or ())]


def test_what_sbatch_refuses_is_told(cluster, submit):
    with pytest.raises(
        AssertionError, match=r"(?s)sbatch refused slurm/two-nodes-.*invalid partition"
    ):
        submit("slurm.partition=none-such")


def test_slurm_reads_every_name_as_it_was_written(cluster, submit):
    run = submit(f"slurm.job_name={json.dumps(AWKWARD)}", "slurm.sbatch=['--hold']")
    facts = cluster("scontrol", "show", "job", run.job, "--oneliner")
    assert f"JobName={AWKWARD} UserId=" in facts
    run.tell(CANCEL)
