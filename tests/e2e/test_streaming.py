"""Runs on streams, beside runs on the same data by number."""

import json

import pytest

from automodel_core.cli import main
from automodel_datasets import streaming
from tests.e2e.test_ranks import FSDP, torchrun  # noqa: F401 (a fixture)
from tests.same_run import assert_same_losses_and_tensors, state

STREAM = {"dataset": {"streaming": True}, "step_scheduler": {"max_steps": None}}


@pytest.fixture
def small_portions(monkeypatch):
    """The few rows of these tests in several portions."""
    monkeypatch.setattr(streaming, "ROWS", 3)


def test_streamed_in_file_order_a_run_is_bitwise_that_of_the_same_data_by_number(
    automodel, squad_folder
):
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    both = {"dataloader": {"batch_size": 3}, "validation_dataset": section}
    by_number = automodel({**both, "step_scheduler": {"max_steps": 8}}, folder="by_number")
    streamed = automodel(
        {
            **both,
            "dataset": {"streaming": True},
            "step_scheduler": {"max_steps": 8},
            "validation_dataset": {**section, "streaming": True},
        },
        folder="streamed",
    )
    assert streamed.code == by_number.code == 0, streamed.out
    assert_same_losses_and_tensors(streamed, by_number)
    assert [v["loss"] for v in streamed.validations] == [v["loss"] for v in by_number.validations]
    assert "a stream of samples" in streamed.out


def test_without_max_steps_a_run_ends_where_the_stream_does(automodel):
    run = automodel({**STREAM, "dataloader": {"batch_size": 5}})
    assert run.code == 0, run.out
    assert [step["epoch"] for step in run.steps] == [0] * 4
    assert run.checkpoints == ["epoch_0_step_4"]
    again = automodel({**STREAM, "dataloader": {"batch_size": 5}})
    assert "finished at step 4" in again.out
    twice = {**STREAM, "step_scheduler": {"max_steps": None, "num_epochs": 2}}
    more = automodel({**twice, "dataloader": {"batch_size": 5}})
    whole = automodel({**twice, "dataloader": {"batch_size": 5}}, folder="whole")
    assert_same_losses_and_tensors(more, whole)
    assert len(more.steps) == 8


@pytest.mark.parametrize("packed", [0, 160])
def test_a_streamed_run_goes_on_in_mid_window_and_mid_pack_bitwise(
    automodel, small_portions, packed
):
    changes = {
        "dataset": {"streaming": True},
        "dataloader": {"batch_size": 1 if packed else 2, "shuffle": True, "shuffle_window": 6},
        "packed_sequence": {"packed_sequence_size": packed},
        "step_scheduler": {"max_steps": 12, "num_epochs": None},
    }
    whole = automodel(changes, folder="whole")
    assert whole.code == 0, whole.out
    for steps in (3, 10):  # in the first epoch, and in a later one
        part = automodel({**changes, "step_scheduler": {"max_steps": steps}}, folder="parts")
        assert part.code == 0, part.out
    helped = {"dataloader": {**changes["dataloader"], "num_workers": 1}}
    rest = automodel({**changes, **helped}, folder="parts")
    assert_same_losses_and_tensors(rest, whole)
    assert state(rest) == state(whole)
    assert {step["epoch"] for step in rest.steps} > {0}
    if packed:
        assert all(step["packing_efficiency"] == step["num_tokens"] / 160 for step in rest.steps)


def test_workers_change_nothing(automodel, small_portions):
    changes = {**STREAM, "dataloader": {"batch_size": 3, "shuffle": True, "shuffle_window": 8}}
    alone = automodel(changes, folder="alone")
    helped = automodel(
        {**changes, "dataloader": {**changes["dataloader"], "num_workers": 2}}, folder="helped"
    )
    assert helped.code == 0, helped.out
    assert_same_losses_and_tensors(helped, alone)


def test_bad_rows_are_counted_or_end_the_run_with_their_place(automodel, squad_folder, tmp_path):
    lines = (squad_folder / "train.jsonl").read_text().splitlines()
    path = tmp_path / "some_bad.jsonl"
    path.write_text("\n".join([*lines[:6], "{", *lines[6:], "[]"]) + "\n")
    section = {"dataset_name": str(path), "streaming": True}
    skipped = automodel({**STREAM, "dataset": {**section, "on_bad_row": "skip"}}, folder="skip")
    assert skipped.code == 0, skipped.out
    assert len(skipped.steps) == 4
    assert "Bad rows skipped: 2." in skipped.out
    assert f"{path}:7 is not valid JSON" in skipped.out
    refused = automodel({**STREAM, "dataset": section, "dataloader": {"num_workers": 1}})
    assert refused.code == 2
    assert f"{path}:7 is not valid JSON" in refused.out
    assert "Traceback" not in refused.out


def test_a_stream_of_which_nothing_is_learned_is_refused(automodel, tmp_path):
    path = tmp_path / "masked.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 6, 7], "labels": [-100] * 3}) + "\n")
    section = {"_target_": "tokens", "dataset_name": None, "split": None, "streaming": True}
    run = automodel({**STREAM, "dataset": {**section, "path_or_dataset_id": str(path)}})
    assert run.code == 2
    assert "nothing of them is to be learned" in run.out


REFUSED = {
    "dataloader.group_by_length": {"dataloader": {"group_by_length": True, "shuffle": True}},
    "dataloader.shuffle_window": {"dataloader": {"shuffle_window": 8}},
    "generation_eval.dataset.streaming": {
        "generation_eval": {"dataset": {"_target_": "squad", "streaming": True}}
    },
    "lr_scheduler.lr_decay_style": {"lr_scheduler": {"lr_decay_style": "cosine"}},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_stream_can_t_go_with_is_refused_at_its_line_before_anything_is_read(
    key, config_file, tmp_path, capsys
):
    path = config_file({**STREAM, **REFUSED[key]}, tmp_path / "run")
    assert main(["validate", path, "--format", "json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)
    text = tmp_path.joinpath("config.yaml").read_text().splitlines()
    assert key.rpartition(".")[2] in text[problem["line"] - 1]


def test_a_window_is_refused_where_nothing_is_streamed(automodel):
    run = automodel({"dataloader": {"shuffle": True, "shuffle_window": 8}})
    assert run.code == 2
    assert "shuffle_window is for streams" in run.out


def test_where_nothing_is_read_as_it_goes_streaming_is_refused_with_the_reason(
    config_file, tmp_path, capsys
):
    mock = {"_target_": "mock", "length": 8, "dataset_name": None, "split": None}
    for section, reason in (({"_target_": "mixture"}, "in each of the sources"), (mock, "nothing")):
        path = config_file({"dataset": {**section, "streaming": True}}, tmp_path / "run")
        assert main(["validate", path]) == 2
        shown = " ".join(capsys.readouterr().out.split())
        assert "takes no argument `streaming`" in shown
        assert reason in shown


def test_bench_times_a_stream(config_file, tmp_path, capsys):
    path = config_file(STREAM, tmp_path / "run")
    one = ["--nproc-per-node", "1"]
    assert main(["bench", path, "--warmup", "1", "--steps", "5", "--json", *one]) == 0
    assert json.loads(capsys.readouterr().out)


def test_data_show_looks_at_the_first_samples_of_a_stream(config_file, tmp_path, capsys):
    path = config_file(STREAM, tmp_path / "run")
    assert main(["data", "show", path, "--examine", "8", "--num", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "dataset: a stream" in shown
    assert "8 samples in 8 rows" in shown


@pytest.mark.slow
@pytest.mark.parametrize("packed", [0, 160])
def test_two_ranks_follow_one_to_the_end_of_a_stream_that_ends_unevenly(
    torchrun,  # noqa: F811
    automodel,
    packed,
):
    changes = {
        "dataset": {"streaming": True, "limit_dataset_samples": 13},
        "packed_sequence": {"packed_sequence_size": packed},
        "dataloader": {"batch_size": 1, "shuffle": True, "num_workers": 2},
        "step_scheduler": {"max_steps": None, "num_epochs": 2, "global_batch_size": 4},
    }
    alone = automodel(changes, folder="alone")
    found = torchrun(2, {**changes, "distributed": FSDP})
    assert found.code == 0, found.out
    assert [s["loss"] for s in found.steps] == pytest.approx(
        [s["loss"] for s in alone.steps], rel=1e-5
    )
