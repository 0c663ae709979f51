"""Adapters that PEFT trained, merged here and by PEFT."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from automodel_core.errors import UserError
from automodel_peft.lora import PeftConfig
from tests.plugins.peft.models import VOCABULARY, llama, logits, train

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = {
    "lora": {"target_modules": ["q_proj", "up_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dora and rslora": {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora of embeddings": {"target_modules": ["embed_tokens"], "use_dora": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {"up_proj": 16},
    },
}


def gpt2():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, initializer_range=0.1, **small,
                       tie_word_embeddings=False)
        )  # fmt: skip


def of_peft(base, folder, save_embedding_layers="auto", **settings):
    """Train an adapter with PEFT and save it; returns the unmerged model."""
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 4, "lora_alpha": 6} | settings))
    train(model, [p for p in model.parameters() if p.requires_grad])
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return model


def merged(base, folder):
    """The base with our merged weights."""
    merger, weights = PeftConfig().merger(base, folder), base.state_dict()
    model = copy.deepcopy(base)
    model.load_state_dict(weights | {n: merger.merge(n, weights[n]) for n in merger.names})
    return model


def assert_same_as_peft(base, folder, unmerged):
    ours, expected = merged(base, folder), logits(unmerged)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload()
    assert (expected - logits(base)).abs().max() > 1e-3
    assert (logits(ours) - expected).abs().max() < 1e-5
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_peft_merges(case, tmp_path):
    base = llama()
    assert_same_as_peft(base, tmp_path, of_peft(base, tmp_path, **CASES[case]))


@pytest.mark.parametrize("dora", [False, True])
def test_layers_that_store_their_weight_transposed_are_merged_so(dora, tmp_path):
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": dora}
    base = gpt2()
    assert_same_as_peft(base, tmp_path, of_peft(base, tmp_path, **settings))


def test_embeddings_that_peft_saved_for_new_tokens_are_taken(tmp_path):
    base = llama()
    longer = copy.deepcopy(base)
    longer.resize_token_embeddings(VOCABULARY + 3)
    unmerged = of_peft(longer, tmp_path, target_modules=["q_proj"], save_embedding_layers=True)
    merger = PeftConfig().merger(base, tmp_path)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= merger.names
    weights = base.state_dict()
    ours = copy.deepcopy(longer)
    ours.load_state_dict(weights | {n: merger.merge(n, weights[n]) for n in merger.names})
    assert (logits(ours) - logits(unmerged)).abs().max() < 1e-5


def test_a_merge_is_as_exact_as_float32_allows(tmp_path):
    base = llama()
    of_peft(base, tmp_path, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj"
    stored = {k: v.double() for k, v in load_file(tmp_path / "adapter_model.safetensors").items()}
    a, b = (stored[f"base_model.model.{name}.lora_{each}.weight"] for each in "AB")
    low = base.get_parameter(f"{name}.weight").detach().bfloat16()
    ours = PeftConfig().merger(base, tmp_path).merge(f"{name}.weight", low)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), low.double() + 6 / 4 * (b @ a), rtol=1e-6, atol=1e-7)


def test_what_the_model_has_no_place_for_is_refused_by_name(tmp_path):
    base = llama()
    of_peft(base, tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.model.strange.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"model\.strange\.weight"):
        PeftConfig().merger(base, tmp_path)
    save_file({k: v for k, v in tensors.items() if "layers.1" in k or "lora_A" in k}, path)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj"):
        PeftConfig().merger(base, tmp_path)


def test_another_base_is_refused(tmp_path):
    of_peft(llama(), tmp_path, target_modules=["q_proj"])
    other = llama(hidden_size=64)
    merger = PeftConfig().merger(other, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(UserError, match="32 x 32, and the base model's is 64 x 64"):
        merger.merge(name, other.get_parameter(name).detach())
    with pytest.raises(UserError, match="doesn't have"):
        PeftConfig().merger(gpt2(), tmp_path)


def test_peft_weights_that_share_an_update_are_refused(tmp_path):
    base = llama(tie_word_embeddings=True)
    of_peft(base, tmp_path, target_modules=["embed_tokens"], ensure_weight_tying=True)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["ensure_weight_tying"]
    with pytest.raises(UserError, match="ensure_weight_tying"):
        PeftConfig().merger(base, tmp_path)
