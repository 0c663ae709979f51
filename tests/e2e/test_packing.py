"""Runs on packed rows."""

import json

import pytest

from tests.e2e.test_ranks import FSDP, torchrun  # noqa: F401 (a fixture)
from tests.same_run import assert_same_losses_and_tensors, state
from tests.tiny import tiny_llama, tiny_tokenizer

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


def test_held_out_questions_are_asked_apart_from_packed_rows(automodel, squad_folder, tmp_path):
    """As in a run that doesn't pack, where each is a prompt of its own."""
    talkative = tmp_path / "model"  # tied embeddings would only say the last token again
    tiny_tokenizer(talkative, chat=True)
    tiny_llama(talkative, tie_word_embeddings=False)
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    asked = {
        "model": {"pretrained_model_name_or_path": str(talkative)},
        "generation_eval": {"dataset": section, "max_new_tokens": 16, "batch_size": 3},
        "step_scheduler": {"max_steps": 1},
    }
    packed, plain = automodel({**PACKED, **asked}, folder="packed"), automodel(asked, folder="one")
    assert packed.code == plain.code == 0, packed.out
    answers = [(run.folder / "answers_before.json").read_text() for run in (packed, plain)]
    assert answers[0] == answers[1]
    assert len(json.loads(answers[0])) == 8
    assert all(json.loads(answers[0]))
    assert "exact match: 0/8 before" in packed.out


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


@pytest.mark.slow
@pytest.mark.parametrize("layout", [FSDP, {"_target_": "ddp"}])
def test_packed_rows_of_a_mixture_resume_in_the_middle_of_an_epoch_on_two_ranks_bitwise(
    torchrun,  # noqa: F811
    automodel,
    base_config,
    squad_folder,
    layout,
):
    """A cursor in the second epoch; and ranks count tokens by source as one process does."""
    del base_config["dataset"]
    squad = {"_target_": "squad", "dataset_name": str(squad_folder)}
    sources = {split: {**squad, "split": split} for split in ("train", "validation")}

    def until(step: int) -> dict:
        return {
            **PACKED,
            "dataset": {"_target_": "mixture", "sources": sources},
            "step_scheduler": {"max_steps": step, "global_batch_size": 2},
            "lr_scheduler": {"lr_decay_style": "constant"},
            "deterministic": True,
        }

    one = automodel(until(7), folder="one")
    spread = {"distributed": layout}
    whole = torchrun(2, {**until(7), **spread}, folder="whole")
    first = torchrun(2, {**until(5), **spread}, folder="parts")
    assert whole.code == first.code == 0, whole.out + first.out
    assert (first.folder / "latest").resolve().name == "epoch_1_step_5"
    position = json.loads((first.folder / "latest/training/state.json").read_text())["data"]
    assert position["epoch"] == 1
    assert position["samples"] > 0
    rest = torchrun(2, {**until(7), **spread}, folder="parts")
    assert_same_losses_and_tensors(rest, whole)
    assert state(rest) == state(whole)
    for found, expected in zip(whole.steps, one.steps, strict=True):
        counts = {name: count for name, count in expected.items() if "num_label_tokens" in name}
        assert len(counts) == 3
        assert counts.items() <= found.items()
        assert found["packing_efficiency"] == expected["packing_efficiency"]
