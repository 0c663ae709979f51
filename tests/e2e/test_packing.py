"""Runs on packed rows."""

import json

import pytest

from tests.e2e.test_ranks import FSDP, torchrun  # noqa: F401 (a fixture)

PACKED = {
    "packed_sequence": {"packed_sequence_size": 160},
    "dataloader": {"batch_size": 1, "shuffle": True},
    "step_scheduler": {"max_steps": 6},
}


def test_packed_sequence_size(automodel, squad_folder):
    """More samples in a step than rows, each learned once in an epoch; validated on packed rows."""
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    steps = {"step_scheduler": {"num_epochs": 1, "max_steps": None}}
    packed = automodel({**PACKED, **steps, "validation_dataset": section}, folder="packed")
    assert packed.code == 0, packed.out
    plain = automodel(
        {"dataloader": {"batch_size": 1}, **steps, "validation_dataset": section}, folder="plain"
    )
    assert len(packed.steps) < len(plain.steps) == 16
    assert sum(s["num_label_tokens"] for s in packed.steps) == sum(
        s["num_label_tokens"] for s in plain.steps
    )
    assert "16 samples are packed in" in packed.out
    # A step is a row of 160 tokens, or as long as its longest sample.
    assert all(s["packing_efficiency"] == s["num_tokens"] / 160 for s in packed.steps)
    assert all(s["packing_efficiency"] == 1 for s in plain.steps)
    filled = sum(s["num_tokens"] for s in packed.steps) / (160 * len(packed.steps))
    assert f"rows of 160 tokens, {filled:.1%} full" in packed.out


def test_a_packed_run_resumes_in_the_middle_of_an_epoch_bitwise(automodel):
    whole = automodel(PACKED, folder="whole")
    assert whole.code == 0, whole.out
    first = automodel({**PACKED, "step_scheduler": {"max_steps": 3}}, folder="parts")
    assert first.code == 0, first.out
    rest = automodel(PACKED, folder="parts")
    assert [step["loss"] for step in rest.steps] == [step["loss"] for step in whole.steps]


def test_another_row_size_is_refused_on_resume(automodel):
    automodel(PACKED, folder="run")
    other = {**PACKED, "packed_sequence": {"packed_sequence_size": 200}}
    assert automodel(other, folder="run").code == 2


def test_rows_shared_by_ranks_are_refused(automodel):
    run = automodel({**PACKED, "distributed": {"_target_": "fsdp2", "cp_size": 2}})
    assert run.code == 2


def test_a_model_that_carries_a_state_is_refused_before_weights(automodel, tiny_model, tmp_path):
    from transformers import AutoTokenizer, MambaConfig

    folder = tmp_path / "mamba"
    MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=1, state_size=4).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model = {"_target_": "causal_lm_from_config", "config": str(folder)}
    run = automodel({**PACKED, "model": {**model, "pretrained_model_name_or_path": None}})
    assert run.code == 2
    assert "MambaForCausalLM doesn't keep them apart" in " ".join(run.out.split())
    assert "packed_sequence_size" in run.out


def test_data_show_parts_the_documents_of_a_row(config_file, tmp_path, capsys):
    from automodel_core.cli import main

    code = main(["data", "show", config_file(PACKED, tmp_path / "run"), "--json", "--num", "1"])
    shown = json.loads(capsys.readouterr().out)["dataset"]
    assert code == 0
    assert shown["documents"] == 16 > shown["rows"]
    assert "boundary" in {piece["role"] for piece in shown["shown"][0]}
    assert shown["faults"] == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", [FSDP, {**FSDP, "tp_size": 2}, {"_target_": "ddp"}])
def test_packed_rows_on_two_ranks_follow_one(torchrun, automodel, layout):  # noqa: F811
    changes = {**PACKED, "step_scheduler": {"max_steps": 6, "global_batch_size": 2}}
    alone = automodel(changes, folder="alone")
    found = torchrun(2, {**changes, "distributed": layout})
    assert found.code == 0, found.out
    assert [s["loss"] for s in found.steps] == pytest.approx(
        [s["loss"] for s in alone.steps], rel=1e-5
    )
