"""Processes are started through torchrun's launcher: what they say, how they end, what they get."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from automodel_core.cli import main
from automodel_core.cli.launching import (
    Meeting,
    announce,
    launch,
    processes_wanted,
    usable_cores,
)
from automodel_core.errors import UserError

START = """\
import os, signal, sys, time
from automodel_core import ranks
from automodel_core.telling import tell
rank = ranks.rank()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # a line at once
"""
WAIT = "else: time.sleep(60)"

# A parent that signals can be sent to, without the test's own process being in the way.
PARENT = """\
import sys
from automodel_core.cli import launching
sys.exit(launching.launch(2, ["-c", sys.argv[1]]))
"""


@pytest.fixture
def ended(capfd, monkeypatch, tmp_path):
    """Run a piece of Python as two ranks; returns the exit code and everything printed."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(code: str) -> tuple[int, str]:
        capfd.readouterr()
        ending = launch(2, ["-c", START + code])
        return ending, "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize("code", [1, 2, 3, 75, 130])
def test_the_exit_code_of_a_rank_survives(ended, code):
    assert ended(f"if rank: tell('because'); sys.exit({code})\n{WAIT}") == (code, "because\n")


def test_done_is_done_and_leaves_no_files(ended, tmp_path):
    assert ended("say(rank)")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_saved_on_any_rank_is_saved(ended):
    code, _ = ended("if rank: time.sleep(1)\nsys.exit(75 if rank == 0 else 1)")
    assert code == 75
    trapped = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nif rank: time.sleep(60)"
    code, _ = ended(f"{trapped}\ntime.sleep(1)\nsys.exit(1)")
    assert code == 75


def test_the_first_to_fail_decides_not_those_that_were_ended_for_it(ended):
    code, _ = ended(f"if rank: sys.exit(3)\n{WAIT}")
    assert code == 3
    code, _ = ended(f"if rank == 0: sys.exit(3)\n{WAIT}")
    assert code == 3


def test_what_every_rank_has_met_is_told_once(ended):
    code, said = ended("tell('There is no such file.')\nsys.exit(2)")
    assert (code, said) == (2, "There is no such file.\n")


def test_the_cause_is_told_and_not_how_the_others_noticed(ended):
    """The other rank even notices before the cause is told."""
    code, said = ended(
        "from automodel_core.telling import let_the_cause_be_told\n"
        "from automodel_core.errors import FailedElsewhere\n"
        "if rank: time.sleep(1); tell('the cause'); sys.exit(1)\n"
        "let_the_cause_be_told(FailedElsewhere()); tell('noticed'); sys.exit(1)"
    )
    assert (code, said) == (1, "the cause\n")


def test_a_rank_that_was_killed_is_named(ended):
    code, said = ended(f"if rank: os.kill(os.getpid(), signal.SIGKILL)\n{WAIT}")
    assert code == 128 + signal.SIGKILL
    assert said == "Rank 1 of 2 was ended by SIGKILL, as the system does when memory runs out.\n"


def test_a_rank_that_ended_without_a_word_is_named(ended):
    code, said = ended(f"if rank: os._exit(7)\n{WAIT}")
    assert (code, said) == (7, "Rank 1 of 2 ended with exit code 7 and didn't say why.\n")


def test_ranks_share_the_cores(ended, monkeypatch):
    _, said = ended("say(os.environ['OMP_NUM_THREADS'])")
    assert said.split() == [str(max(usable_cores() // 2, 1))] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert ended("say(os.environ['OMP_NUM_THREADS'])")[1].split() == ["3", "3"]


def test_without_torchruns_folder_every_rank_tells():
    environ = {**os.environ, "RANK": "3", "WORLD_SIZE": "4"}
    environ.pop("TORCHELASTIC_ERROR_FILE", None)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "automodel_core", "run", "no.yaml"],
            env=environ, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2
        assert "no.yaml" in done.stderr


@pytest.fixture
def started():
    """Start a parent of two ranks that print `ready`; returns it once both have."""
    processes = []

    def start(code: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, f"{START}\n{code}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        for _ in range(2):
            assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_signals_reach_every_rank_in_their_order_and_its_answer_comes_back(started):
    names = ["SIGUSR1", "SIGINT", "SIGTERM"]
    process = started(
        "def handle(number, frame):\n"
        "    say(rank, signal.Signals(number).name)\n"
        "    if number == signal.SIGTERM:\n"
        "        signal.signal(number, signal.SIG_IGN)\n"  # torchrun's, once the other has ended
        "        tell('saved'); sys.exit(75)\n"
        f"for name in {names}: signal.signal(getattr(signal, name), handle)\n"
        "say('ready')\n"
        "while True: time.sleep(0.05)"
    )
    said = []
    for name in names:
        process.send_signal(getattr(signal, name))
        said += [process.stdout.readline() for _ in range(2)]
    assert process.wait(30) == 75
    said += process.stdout.readlines()
    for rank in (0, 1):
        assert [line for line in said if line[0] == str(rank)] == [f"{rank} {x}\n" for x in names]
    assert said.count("saved\n") == 1


def test_a_run_that_answers_no_signal_can_be_killed(started):
    process = started(
        "signal.signal(signal.SIGINT, lambda *_: say('heard'))\n"
        "say('ready')\n"
        "while True: time.sleep(60)"
    )
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(2)] == ["heard\n"] * 2
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stdout.read() == "Interrupted: the processes were killed.\n"


def test_a_signal_before_anything_is_started_interrupts():
    code = (
        "import os, signal\n"
        "from automodel_core.cli.launching import Forwarding\n"
        "try:\n"
        "    with Forwarding().installed(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr


def test_under_a_launcher_the_run_goes_on_in_this_process(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert processes_wanted(None) == processes_wanted("gpu") == processes_wanted(4) == 1
    with pytest.raises(UserError, match="has started 4 process"):
        processes_wanted(2)


def test_without_gpus_there_is_one_process_unless_more_are_asked_for(monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count():
        pytest.skip("this machine has GPUs")
    assert processes_wanted(None) == processes_wanted("auto") == 1
    assert processes_wanted(3) == 3
    with pytest.raises(UserError, match="PyTorch sees none"):
        processes_wanted("gpu")


@pytest.mark.parametrize("wrong", ["0", "two", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(capsys, wrong):
    assert main(["run", "any.yaml", f"--nproc-per-node={wrong}"]) == 2
    assert "is no number of processes" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_is_started(capfd, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: {_target_: causal_lm, pretrained_model_name_or_path: x}\nlr: 1\n")
    assert main(["run", str(config), "--nproc-per-node", "2"]) == 2
    said = capfd.readouterr().err
    assert said.count("There is no key `lr`") == 1
    assert "torchrun" not in said


def test_the_printed_line_shows_no_secret_and_runs_as_it_stands(capsys):
    announce(2, ["run", "a b.yaml", "--wandb.api_key", "hunter22", "--nproc-per-node", "2"])
    said = capsys.readouterr().err
    assert "hunter22" not in said
    assert re.search(r"torchrun --standalone --nproc-per-node 2 -m automodel_core run 'a b", said)


@pytest.mark.slow
def test_someone_elses_torchrun_shows_one_error(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: {_target_: causal_lm, pretrained_model_name_or_path: x}\nlr: 1\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "automodel_core", "run", str(config)], capture_output=True, text=True
    )
    assert done.stderr.count("There is no key `lr`") == 1
    assert re.search(r"exitcode +: 2", done.stderr)
    assert not Path("checkpoints").exists()


def test_several_nodes_need_a_place_to_meet():
    assert Meeting.asked_for(1, None) == Meeting.asked_for(1, "node1:29500") == Meeting()
    assert Meeting.asked_for(2, "node1:29500").name == "automodel-node1:29500"
    with pytest.raises(UserError, match="no place to meet"):
        Meeting.asked_for(2, None)
    for wrong in ("node1", "node1:", ":29500", "node1:port"):
        with pytest.raises(UserError, match="is no HOST:PORT"):
            Meeting.asked_for(2, wrong)


NODE = """\
import sys
from automodel_core.cli.launching import Meeting, launch
sys.exit(launch(1, ["-c", sys.argv[2]], Meeting.asked_for(2, sys.argv[1])))
"""
CODE = "sys.exit(75 if ranks.world_size() == 2 else 1)"


@pytest.mark.slow
def test_launchers_of_two_nodes_meet_and_keep_the_exit_code():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"{socket.gethostname()}:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", NODE, endpoint, START + CODE]
    nodes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [each.communicate(timeout=120)[1] for each in nodes]
    assert 75 in [each.returncode for each in nodes], told
    assert not any("Traceback" in each for each in told)
