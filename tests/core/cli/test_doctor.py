"""What the doctor says of a machine is true, tells no secret, and its checks tell good from bad."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from automodel_core.cli import main
from automodel_core.doctor import checks, facts

SECRET = "hf_abcdefgh12345678"


@pytest.fixture
def doctor(capsys):
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["doctor", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def examined(doctor, config_file, tmp_path, monkeypatch):
    """Examine the base configuration, changed; nothing may be left in its folder."""
    monkeypatch.setattr(checks, "WRITTEN", 2**20)
    monkeypatch.setattr(checks, "SLOW_DISK", 1.0)

    def run(*words: str, changes: dict | None = None) -> tuple[int, dict]:
        file = config_file(changes, tmp_path / "run")
        before = sorted(tmp_path.rglob("*"))
        code, out, err = doctor(file, "--json", "--nproc-per-node", "1", *words)
        assert sorted(tmp_path.rglob("*")) == before
        return code, json.loads(out) if out else {"said": err}

    return run


def test_the_facts_are_those_that_others_tell(doctor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = doctor("--json")
    found = json.loads(out)["facts"]
    assert code == 0
    for package in ("torch", "transformers", "datasets", "safetensors"):
        assert found["versions"][package] == importlib.metadata.version(package)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    total = shutil.disk_usage(tmp_path).total / 2**30
    assert f" of {total:,.1f} GiB free" in found["disks"]["runs (checkpoints)"]
    gpus = [name for name in found["GPUs"] if name.startswith("cuda:")]
    assert len(gpus) == torch.cuda.device_count()
    assert any(name.startswith("automodel-core ") for name in found["plugins"])
    assert not list(tmp_path.iterdir())


def test_a_broken_and_a_disabled_plugin_are_shown_with_their_reasons(doctor, tmp_path, monkeypatch):
    info = tmp_path / "theirs-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[automodel.losses]\nfocal = gone_module:make\nother = json:loads\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AUTOMODEL_DISABLE_PLUGINS", "theirs/other")
    _, out, _ = doctor()
    section = out.partition("\n  theirs 1.5")[2]
    assert "losses:focal [broken] there is no module gone_module: reinstall theirs" in section
    assert "losses:other [disabled] you disabled it" in section


def test_no_secret_is_printed_wherever_its_value_stands(doctor, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("NCCL_NET_PLUGIN_AUTH_TOKEN", "swordfish-1")
    monkeypatch.setenv("NCCL_CONF_FILE", f"/etc/{SECRET}/nccl.conf")
    monkeypatch.setenv("HF_HUB_ENDPOINT", "https://me:opensesame@example.org")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    for form in ([], ["--json"]):
        _, out, err = doctor(*form)
        assert "NCCL_NET_PLUGIN_AUTH_TOKEN" in out
        assert "WARN" in out
        for secret in (SECRET, "swordfish-1", "opensesame"):
            assert secret not in out + err


def test_a_fact_that_cannot_be_read_says_why_and_the_others_stand(monkeypatch, tmp_path):
    def broken(*_: object) -> int:
        raise OSError("the disk is gone")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    monkeypatch.setattr(torch.cuda, "device_count", broken)
    found = facts.facts(tmp_path)
    assert found["disks"][f"runs ({tmp_path})"] == "not readable: OSError: the disk is gone"
    assert found["GPUs"] == {"all": "not readable: OSError: the disk is gone"}
    assert found["versions"]["torch"] == importlib.metadata.version("torch")


def test_a_configuration_is_examined_and_nothing_is_left(examined):
    code, found = examined()
    assert code == 0
    assert [(each["name"], each["state"]) for each in found["checks"]] == [
        ("all-reduce", "OK"),
        ("disk", "OK"),
        ("step", "OK"),
    ]
    assert 0 < found["checks"][2]["figures"]["loss"] < 20


def test_the_step_has_the_longest_rows_that_the_configuration_allows(examined):
    """Two steps of four samples; random tokens fill each row."""
    code, found = examined(changes={"dataset": {"max_length": 24}})
    assert code == 0
    assert found["checks"][2]["figures"]["tokens"] == 4 * 24


def test_what_fails_has_a_sentence_of_what_to_do_and_exit_code_1(examined, monkeypatch):
    """No disk holds this model's checkpoints: the referee of space says that it is full."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, found = examined()
    disk = found["checks"][1]
    assert (code, disk["state"]) == (1, "FAILED")
    assert "Not enough room for 1 checkpoint(s)" in disk["message"]
    assert "larger disk" in disk["fix"]
    assert found["checks"][2]["state"] == "OK", "the other checks still run"


def test_a_slow_disk_is_no_failure(examined, monkeypatch):
    monkeypatch.setattr(checks, "SLOW_DISK", 1e15)
    code, found = examined()
    assert (code, found["checks"][1]["state"]) == (0, "slow")
    assert "local disk" in found["checks"][1]["fix"]


def test_bad_input_is_2(doctor, examined):
    assert doctor("--nproc-per-node", "2")[0] == 2
    assert doctor("nowhere.yaml")[0] == 2
    assert examined("model.pretrained_model_name_or_path=/nowhere")[0] == 2


def started(file: str, *words: str, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "automodel_core", "doctor", file, "--nproc-per-node", "2"]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environ)


@pytest.mark.slow
def test_two_ranks_sum_and_one_of_them_prints(config_file, tmp_path):
    done = started(config_file(None, tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["checks"]
    figures = found[0]["figures"]
    assert found[0]["message"].startswith("right on 2 ranks")
    by_hand = figures["bytes"] / figures["seconds"] * 2 * (2 - 1) / 2
    assert figures["bus_bytes_per_second"] == pytest.approx(by_hand)
    assert not Path(tmp_path / "run").exists()


@pytest.mark.slow
def test_the_rank_that_fails_is_named(config_file, tmp_path):
    """Rank 1 alone meets a sum that breaks, in code that Python runs when it starts."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import torch.distributed as dist\n"
        "    def broken(*_): raise RuntimeError('cable pulled')\n"
        "    dist.all_reduce = broken\n"
    )
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = started(config_file(None, tmp_path / "run"), env=path)
    assert done.returncode == 1, done.stderr
    assert "FAILED  all-reduce  on rank 1: RuntimeError: cable pulled" in done.stdout
