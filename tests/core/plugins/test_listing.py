"""`list-plugins` and `show`: from metadata and sources, without importing anything heavy."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from automodel_core.cli.list_plugins import list_plugins
from automodel_core.cli.show import show
from automodel_core.errors import UserError

MODULE = '''
    """Marks each step."""
    import torch

    class Focal:
        """Cross-entropy that cares about what is hard.

        It says more about itself here.

        Args:
            gamma: How much it cares.
            reduction: What it does.
        """

        def __init__(self, weights: list[float], gamma: float = 2.0, pair: tuple = (1, 2)): ...
'''


@pytest.fixture
def focal(install):
    groups = {
        "losses": {"focal": "focal:Focal", "missing": "focal:Missing"},
        "hooks": {"marks": "focal"},
        "aliases": {"other.Focal": "focal:Focal"},
    }
    install("focal-loss", groups, {"focal": MODULE})


def run(command, *arguments):
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.output


def test_the_list(focal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out = run(list_plugins)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "focal Cross-entropy that cares about what is hard. focal-loss 1.0" in lines
    assert "missing [broken] focal has no Missing focal-loss 1.0" in lines
    assert "marks Marks each step. focal-loss 1.0" in lines
    assert lines[-1].endswith("other spellings: automodel list-plugins --kind aliases")


def test_one_kind(focal):
    _, out = run(list_plugins, "--kind", "losses")
    assert "focal" in out
    assert "squad" not in out
    _, out = run(list_plugins, "--kind", "aliases")
    assert "other.Focal" in out
    assert "focal.Focal" in out


def test_json(focal):
    _, out = run(list_plugins, "--json", "--kind", "losses")
    (row,) = [row for row in json.loads(out) if row["name"] == "focal"]
    assert row == {
        "kind": "losses",
        "name": "focal",
        "distribution": "focal-loss",
        "version": "1.0",
        "value": "focal:Focal",
        "state": "ok",
        "reason": "",
        "summary": "Cross-entropy that cares about what is hard.",
    }


def test_check_imports_each_and_reports(focal, install):
    assert run(list_plugins, "--check", "--kind", "optimizers")[0] == 0
    install(
        "bomb", {"losses": {"bomb": "bomb_module:make"}}, {"bomb_module": "raise SystemExit(3)"}
    )
    code, out = run(list_plugins, "--check", "--kind", "losses")
    assert code == 1
    assert "importing it raised SystemExit: 3" in out
    assert "importing it raised AttributeError: module 'focal' has no attribute 'Missing'" in out


def test_show(focal):
    _, out = run(show, "focal")
    assert out.splitlines()[1] == "  loss of focal-loss 1.0 (ok)"
    assert "focal.py:5" in out
    assert "It says more about itself here." in out
    assert "  weights: list[float]  (required)\n" in out
    assert "  gamma: float = 2.0\n      How much it cares.\n" in out
    assert out.endswith(
        "In YAML\n"
        "  loss_fn:\n"
        "    _target_: focal\n"
        "    weights: ...  # list[float]\n"
        "    # gamma: 2.0\n"
        "    # pair: [1, 2]\n"
    )


def test_show_says_what_the_engine_gives():
    _, out = run(show, "adamw")
    assert "The engine gives it params." in out
    assert "  optimizer:\n    _target_: adamw\n    # lr: 0.001\n" in out


def test_show_writes_a_list_where_the_section_is_one():
    _, out = run(show, "tensorboard")
    assert "  loggers:\n    - _target_: tensorboard\n      # save_dir: none\n" in out


def test_show_takes_every_spelling(focal):
    for name in ("losses:focal", "focal-loss/focal", "other.Focal", "focal.Focal"):
        assert "focal.Focal" in run(show, name)[1]
    assert "torch.optim.Adagrad" in run(show, "torch.optim.Adagrad")[1]
    with pytest.raises(UserError, match="No plugin is called"):
        run(show, "focall")
    with pytest.raises(UserError, match="nor trusted"):
        run(show, "os.system")


@pytest.mark.parametrize("command", ["list_plugins", "show"])
def test_nothing_heavy_is_imported(command):
    arguments = ["adamw"] if command == "show" else []
    code = f"""
import sys
from automodel_core.cli.{command} import {command}
{command}({arguments}, standalone_mode=False)
heavy = {{"torch", "transformers", "torchdata", "numpy", "automodel_losses"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
