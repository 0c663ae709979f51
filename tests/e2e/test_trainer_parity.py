"""The referee is transformers.Trainer on the very same batches; for adapters, with PEFT's model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from automodel_core.cli import main
from tests.trainer import SAME, STEPS, trainer_losses
from tests.variants import mostly_slow


@pytest.fixture
def base(tiny_model):
    """Loads the model that everybody starts from."""
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def referee(tiny_model, squad_folder, tmp_path):
    """Trains a model with transformers.Trainer; the losses."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda model: trainer_losses(model, tokenizer, squad_folder, tmp_path)


def assert_same_losses(ours, theirs):
    assert len(ours) == STEPS
    left, right = (torch.tensor(losses, dtype=torch.float64) for losses in (ours, theirs))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=0)


@torch.no_grad()
def logits(model):
    return model.eval()(torch.arange(3, 43).reshape(2, 20)).logits


def test_fifty_steps_follow_transformers_trainer(automodel, base, referee):
    ours = automodel(SAME | {"checkpoint": {"enabled": False}})
    assert ours.code == 0, ours.out
    assert_same_losses(ours.losses, referee(base()))


VARIANTS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.mark.parametrize("name", mostly_slow(VARIANTS, fast=["lora"]))
def test_fifty_steps_of_an_adapter_follow_peft(automodel, base, referee, tmp_path, name):
    """From PEFT's own first values; then through PEFT's file and a merged model."""
    layers = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=layers, **VARIANTS[name])
    theirs = get_peft_model(base(), config)
    theirs.save_pretrained(tmp_path / "start")
    peft = {"_target_": name, "adapter_path": str(tmp_path / "start")}
    ours = automodel(SAME | {"peft": peft})
    assert ours.code == 0, ours.out
    assert_same_losses(ours.losses, referee(theirs))

    exported = PeftModel.from_pretrained(base(), ours.folder / "latest" / "model")
    assert (logits(base()) - logits(exported)).abs().max() > 0.01
    assert (logits(theirs) - logits(exported)).abs().max() < 1e-4, "the same after 50 steps"
    merged = tmp_path / "merged"
    assert main(["merge", str(ours.folder), "--out", str(merged), "--no-check"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert (logits(plain) - logits(exported)).abs().max() < 1e-5
