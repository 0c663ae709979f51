"""Whole runs with adapters: what they save opens in PEFT, and they resume bitwise."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from automodel_core.train import build

LORA = {"_target_": "lora", "dim": 4, "alpha": 8, "include_modules": ["*.q_proj", "*.v_proj"]}


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "lora_plus", "pissa"])
def test_a_run_with_adapters_opens_in_peft(automodel, tiny_model, name):
    run = automodel({"peft": {**LORA, "_target_": name}, "optimizer": {"lr": 1e-2}})
    assert run.code == 0, run.out
    folder = run.folder / "latest" / "model"
    assert not list(folder.glob("model*.safetensors")), "only what trains is saved"
    assert f"  automodel merge {run.folder}\n" in run.out, "what to do next"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(3, 23)[None]
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, folder)(ids).logits
    assert (before - after).abs().max() > 1e-4, "the adapter has learned"


def test_the_references_peft_keys_are_honoured(automodel):
    run = automodel(
        {
            "peft": {
                **LORA,
                "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
                "match_all_linear": False,
                "exclude_modules": ["*.v_proj"],
                "dropout": 0.1,
            }
        }
    )
    assert run.code == 0, run.out
    saved = load_file(run.folder / "latest" / "model" / "adapter_model.safetensors")
    assert saved
    assert all("q_proj" in key for key in saved), "include minus exclude"
    assert {min(tensor.shape) for tensor in saved.values()} == {4}, "dim is the rank"


def test_match_all_linear_adapts_every_linear_layer(automodel):
    everything = {"_target_": "lora", "match_all_linear": True}
    run = automodel({"peft": everything, "step_scheduler": {"max_steps": 1}})
    assert run.code == 0, run.out
    saved = load_file(run.folder / "latest" / "model" / "adapter_model.safetensors")
    layers = {key.split(".lora_")[0].split(".")[-1] for key in saved}
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert layers >= attention | mlp | {"lm_head"}


def test_a_run_with_adapters_resumes_bitwise(automodel):
    peft = {"peft": {**LORA, "dropout": 0.1}, "dataloader": {"shuffle": True}}
    whole = automodel(peft, folder="whole")
    first = automodel({**peft, "step_scheduler": {"max_steps": 2}}, folder="parts")
    second = automodel(peft, folder="parts")
    assert whole.code == first.code == second.code == 0, second.out
    assert second.losses == whole.losses
    ends = [
        load_file(run.folder / "latest" / "model" / "adapter_model.safetensors")
        for run in (whole, second)
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


UNCHANGED = "guard adapter_unchanged: None of the adapter's tensors has changed since the start."


def test_an_adapter_that_does_not_change_stops_the_run_before_it_is_saved(automodel):
    run = automodel({"peft": LORA, "optimizer": {"lr": 0.0}})
    assert run.code == 3, run.out
    assert UNCHANGED in run.out
    assert run.checkpoints == []


def test_an_adapter_that_does_not_change_stops_the_run_at_step_20(automodel):
    """Long before the first save, or without one."""
    longer = {"step_scheduler": {"max_steps": 40}, "checkpoint": {"enabled": False}}
    run = automodel({"peft": LORA, "optimizer": {"lr": 0.0}, **longer})
    assert run.code == 3, run.out
    assert UNCHANGED in run.out
    assert len(run.steps) == 20


@pytest.mark.parametrize(("does", "lines"), [("warn", 1), ("off", 0)])
def test_an_adapter_may_stay_as_it_is_if_the_yaml_says_so(automodel, does, lines):
    saves = {"step_scheduler": {"max_steps": 24}, "checkpoint": {"save_every_steps": 6}}
    guards = {"guards": {"adapter_unchanged": does}}
    run = automodel({"peft": LORA, "optimizer": {"lr": 0.0}, **saves, **guards})
    assert run.code == 0, run.out
    assert run.out.count(UNCHANGED) == lines
    assert len(run.checkpoints) == 4


@pytest.mark.parametrize("does", ["stop", "off"])
def test_a_whole_model_that_trains_by_mistake_stops_the_run(automodel, monkeypatch, does):
    load_model = build.load_model

    def thawed(*arguments):
        loaded = load_model(*arguments)
        loaded.model.requires_grad_(True)
        return loaded

    monkeypatch.setattr(build, "load_model", thawed)
    run = automodel({"peft": LORA, "guards": {"adapter_unchanged": does}})
    assert run.code == 3, run.out
    assert "guard frozen_weights_train: " in run.out
    assert "belongs to no adapter: model.embed_tokens.weight and 19 more." in run.out
    assert run.checkpoints == []


def test_use_triton_true_is_refused_with_the_override(automodel):
    run = automodel({"peft": {**LORA, "use_triton": True}})
    assert run.code == 2
    assert "use_triton" in run.out


def test_rows_that_an_adapter_cannot_save_are_refused(automodel, tmp_path):
    from tests.tiny import tiny_llama, tiny_tokenizer

    folder = tmp_path / "few rows"
    tokenizer = tiny_tokenizer(folder)
    tiny_llama(folder, vocab_size=len(tokenizer) - 2)
    model = {"pretrained_model_name_or_path": str(folder), "resize_embeddings": True}
    run = automodel({"model": model, "peft": LORA})
    assert run.code == 2, run.out
    assert "New rows of the embeddings would be lost" in run.out
    assert automodel({"model": model, "step_scheduler": {"max_steps": 1}}).code == 0
