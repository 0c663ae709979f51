import os
import signal
import subprocess
import sys

import pytest

from automodel_core.errors import UserError
from automodel_core.train.checkpoint import discard_unfinished
from automodel_core.train.run_folder import (
    check_disk_space,
    checkpoints_in,
    fresh_sibling,
    latest_checkpoint,
    locked,
    open_run_folder,
    point_to,
    prune,
)


def test_a_fresh_run_gets_a_folder_beside_the_used_one(tmp_path):
    used = tmp_path / "run"
    assert fresh_sibling(used) == used
    used.mkdir()
    (used / "training.jsonl").touch()
    assert fresh_sibling(used) == tmp_path / "run-2"


def test_checkpoints_are_listed_by_step_not_by_spelling(tmp_path):
    for name in ("epoch_0_step_9", "epoch_0_step_10", "epoch_1_step_100", "notes"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoints_in(tmp_path)] == [
        "epoch_0_step_9",
        "epoch_0_step_10",
        "epoch_1_step_100",
    ]


def test_latest_follows_the_link_and_survives_its_loss(tmp_path):
    first, second = tmp_path / "epoch_0_step_1", tmp_path / "epoch_0_step_2"
    first.mkdir()
    second.mkdir()
    point_to(first, "latest")
    assert latest_checkpoint(tmp_path) == first
    point_to(second, "latest")
    assert latest_checkpoint(tmp_path) == second
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path) == second


def test_latest_may_be_a_text_file_where_links_do_not_work(tmp_path):
    (tmp_path / "epoch_0_step_1").mkdir()
    (tmp_path / "latest").write_text("epoch_0_step_1\n")
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_0_step_1"


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    folders = [tmp_path / f"epoch_0_step_{step}" for step in range(1, 6)]
    for folder in folders:
        folder.mkdir()
    point_to(folders[4], "latest")
    point_to(folders[1], "best")
    prune(tmp_path, None)
    assert len(checkpoints_in(tmp_path)) == 5
    prune(tmp_path, 2)
    assert checkpoints_in(tmp_path) == [folders[1], folders[3], folders[4]]


def test_who_is_killed_while_removing_a_checkpoint_leaves_nothing_that_looks_like_one(
    tmp_path, monkeypatch
):
    folders = [tmp_path / f"epoch_0_step_{step}" for step in (1, 2)]
    for folder in folders:
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")

    def killed(path, ignore_errors=False):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 1)
    assert checkpoints_in(tmp_path) == folders[1:]
    discard_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == folders[1:]


def test_a_folder_that_cannot_be_written_is_refused_at_its_key(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(UserError) as caught:
        open_run_folder(str(blocker / "run"), fresh=False)
    assert caught.value.path == ("checkpoint", "checkpoint_dir")


def test_a_disk_that_is_too_small_is_refused_with_the_arithmetic(tmp_path):
    with pytest.raises(UserError, match=r"2 checkpoint\(s\): about 1048576.0 GiB"):
        check_disk_space(tmp_path, 2**50, "2 checkpoint(s)", "make room")


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_runs_on_one_folder_are_refused(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from automodel_core.train.run_folder import locked\n"
        "with locked(Path(sys.argv[1])): pass\n"
    )
    with locked(tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
    assert "Another run (process" in other.stderr
    with locked(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_loader_workers_that_outlive_a_killed_run_do_not_keep_its_lock(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from automodel_core.train.run_folder import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if not os.fork():\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        run.kill()
        try:
            run.wait()
            with locked(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_fresh_run_that_torchrun_restarts_goes_on_in_the_folder_that_it_opened(
    tmp_path, monkeypatch
):
    used = tmp_path / "run"
    used.mkdir()
    (used / "training.jsonl").write_text("{}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    first = open_run_folder(str(used), fresh=True)
    assert first == tmp_path / "run-2"
    assert open_run_folder(str(used), fresh=True) == first
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert open_run_folder(str(used), fresh=True) == tmp_path / "run-3"


def test_a_fresh_run_that_a_cluster_begins_again_goes_on_in_the_folder_that_it_opened(
    tmp_path, monkeypatch
):
    used = tmp_path / "run"
    (used / "epoch_0_step_1").mkdir(parents=True)
    monkeypatch.setenv("AUTOMODEL_LAUNCH", "job 1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first start")
    first = open_run_folder(str(used), fresh=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second start")
    assert open_run_folder(str(used), fresh=True) == first
    monkeypatch.setenv("AUTOMODEL_LAUNCH", "job 2")
    assert open_run_folder(str(used), fresh=True) == tmp_path / "run-3"
