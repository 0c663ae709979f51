"""A run that is stopped from the terminal, where the signal reaches W&B's own process too."""

import os
import signal
import subprocess
import sys
import time

import pytest
from ruamel.yaml import YAML


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_run_is_marked_as_one_that_goes_on(base_config, tmp_path, offline_runs, stop):
    run = tmp_path / "run"
    config = base_config | {
        "wandb": {"mode": "offline"},
        "step_scheduler": {"max_steps": 100_000},
        "checkpoint": {"checkpoint_dir": str(run)},
    }
    with (tmp_path / "config.yaml").open("w") as handle:
        YAML(typ="safe").dump(config, handle)
    command = [sys.executable, "-m", "automodel_core", "run", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not (run / "training.jsonl").exists():
        time.sleep(0.1)
    os.killpg(process.pid, stop)
    assert process.wait(timeout=60) == 75
    [written] = offline_runs(run)
    assert written.exit_code == 1
    assert any(record.HasField("preempting") for record in written.records)
    steps = (run / "training.jsonl").read_text().count("\n")
    assert sum("train/loss" in row for row in written.rows) == steps
