"""No logger changes or ends a run."""

import logging

import pytest

FAULTY = '''
import random

import numpy
import torch


class Faulty:
    """Draws random numbers and spoils what it is given in every call, and fails in one."""

    def __init__(self, fails_in: str = "", exits: bool = False) -> None:
        self.fails_in, self.error = fails_in, SystemExit if exits else RuntimeError
        self.called("built")

    def start(self, folder, config, step):
        config.clear()
        self.called("start")

    def log_step(self, step, metrics):
        metrics.clear()
        self.called("log_step")

    def log_validation(self, step, metrics):
        metrics.clear()
        self.called("log_validation")

    def finish(self, state):
        self.called("finish " + state)

    def called(self, what):
        random.random(), numpy.random.rand(), torch.rand(3)
        print(f"<{what}>")
        if what == self.fails_in:
            raise self.error("no room")
'''


@pytest.fixture
def logged(automodel, squad_folder, tmp_path, monkeypatch):
    """Run with some loggers, dropout and a validation set."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = {
        "model": {"attn_implementation": "eager", "hf_kwargs": {"attention_dropout": 0.1}},
        "validation_dataset": {
            "_target_": "squad",
            "dataset_name": str(squad_folder),
            "split": "validation",
        },
        "step_scheduler": {"val_every_steps": 2},
    }

    def run(*loggers, folder="run", **changes):
        sections = {**base, "loggers": list(loggers), **changes}
        return automodel(sections, "--allow", "faulty.", folder=folder)

    return run


def faulty(**arguments):
    return {"_target_": "faulty.Faulty", **arguments}


def test_losses_are_bitwise_the_same_with_and_without_loggers(logged):
    plain = logged()
    watched = logged(
        "tensorboard", faulty(), folder="watched", wandb={"mode": "offline", "name": "x"}
    )
    assert len(plain.losses) == 4
    assert watched.losses == plain.losses
    assert [v["loss"] for v in watched.validations] == [v["loss"] for v in plain.validations]


def test_every_call_of_a_run(logged):
    run = logged(faulty())
    called = [line for line in run.out.splitlines() if line.startswith("<")]
    each = ["<log_step>", "<log_step>", "<log_validation>"]
    assert called == ["<built>", "<start>", *each, *each, "<finish finished>"]


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("call", ["start", "log_step", "log_validation", "finish finished"])
def test_one_that_raises_is_dropped_with_one_line(logged, caplog, call, exits):
    with caplog.at_level(logging.WARNING, logger="automodel.loggers"):
        run = logged(faulty(fails_in=call, exits=exits), faulty())
    assert run.code == 0
    assert len(run.losses) == 4
    [line] = [r.getMessage() for r in caplog.records if r.name == "automodel.loggers"]
    kind = "SystemExit" if exits else "RuntimeError"
    assert line == f"The logger faulty.Faulty is dropped: {call.split()[0]} raised {kind}: no room"
    assert run.out.count("<log_validation>") > 1, "the other one goes on"


def test_a_run_that_fails_says_so(logged):
    run = logged(faulty(), optimizer={"lr": 1e30})
    assert run.code == 3
    assert "<finish failed>" in run.out
