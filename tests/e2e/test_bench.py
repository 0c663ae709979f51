"""`automodel bench`: a configuration's speed, on its own data or on random tokens."""

import json

import pytest

from automodel_core.cli import main


@pytest.fixture
def bench(config_file, tmp_path, capsys):
    def run(*words, changes=None):
        code = main(["bench", config_file(changes, tmp_path / "run"), "--warmup", "1", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_figures_of_a_run_on_its_own_data(bench, tmp_path):
    code, out, err = bench("--steps", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    rates = found["tokens_per_second"]
    assert 0 < rates["supervised"] < rates["real"] < rates["padded"]
    steps = found["step_seconds"]
    assert 0 < steps["p10"] <= steps["p50"] <= steps["p90"] <= steps["p99"]
    assert len(found["losses"]) == 4
    assert found["phases_seconds"].keys() == {"prepare", "load", "first step"}
    assert found["tflops_per_second"] > 0
    assert found["mfu"] is None  # nobody knows this processor's peak
    assert found["environment"]["torch"]
    assert not (tmp_path / "run").exists()


def test_random_tokens_of_a_given_length_fill_their_rows(bench):
    code, out, err = bench("--steps", "2", "--mock", "32", "--json")
    assert code == 0, err
    rates = json.loads(out)["tokens_per_second"]
    assert rates["real"] == pytest.approx(rates["padded"])


def test_what_does_not_train_is_left_out(bench, squad_folder, tmp_path):
    changes = {
        "validation_dataset": {"_target_": "squad", "dataset_name": str(squad_folder),
                               "split": "validation"},
        "checkpoint": {"keep_best": "loss", "save_every_steps": 1},
        "lr_scheduler": {"warmup_steps": 3},
        "step_scheduler": {"max_steps": 500, "val_every_steps": 1},
    }  # fmt: skip
    code, out, err = bench("--steps", "1", "--profile", str(tmp_path / "trace"), changes=changes)
    assert code == 0, err
    assert "1 steps on 1 rank(s)" in out
    assert json.loads((tmp_path / "trace" / "trace.json").read_text())["traceEvents"]
    assert not (tmp_path / "run").exists()
