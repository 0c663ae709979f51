"""What an adapted layer keeps of the layer it was, and how it behaves in a model."""

import copy

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import VOCABULARY, adapted, llama, logits, tokens, train

VARIANTS = {"lora": PeftConfig, "rslora": RsLora, "dora": Dora, "lora_plus": LoraPlus,
            "pissa": Pissa}  # fmt: skip
EVERYTHING = ["*", "embed_tokens"]
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_the_model_starts_as_it_was(make):
    base = llama(attention_bias=True)
    model = adapted(make(include_modules=EVERYTHING), base)
    assert torch.equal(logits(model), logits(base))


@each_variant
def test_exactly_what_is_announced_trains(make):
    config = make(include_modules=EVERYTHING, modules_to_save=["*norm"], dim=3)
    model = llama()
    with torch.device("meta"):
        before = config.select(llama())
    report = config.apply(model)
    assert report == before
    training = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in training) == report.trainable
    grouped = [p for group in config.parameter_groups(model, 1.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in training}
    assert len(grouped) == len(training)


def test_names_hooks_and_references_stay():
    model = llama()
    layer, names = model.model.layers[0].mlp.up_proj, list(model.state_dict())
    called = []
    layer.register_forward_hook(lambda *_: called.append(True))
    PeftConfig().apply(model)
    assert model.model.layers[0].mlp.up_proj is layer
    assert isinstance(layer, nn.Linear)
    assert [name for name in model.state_dict() if "lora_" not in name] == names
    logits(model)
    assert called


def test_the_start_depends_on_the_seed_and_the_name_alone():
    def start(include, seed=1):
        model = llama()
        torch.randn(len(include))
        PeftConfig(include_modules=include, seed=seed).apply(model)
        return model.model.layers[1].self_attn.q_proj.lora_A

    assert torch.equal(start(["q_proj"]), start(["k_proj", "*.q_proj"]))
    assert not torch.equal(start(["q_proj"]), start(["q_proj"], seed=2))


@each_variant
def test_embeddings_that_scale_what_they_look_up(make):
    torch.manual_seed(0)
    base = Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32,
                         num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                         head_dim=16, pad_token_id=0, tie_word_embeddings=False)
    )  # fmt: skip
    config = make(include_modules=["embed_tokens"], dim=4)
    model = adapted(config, base)
    train(model, config.parameter_groups(model, 1e-2))
    merged, layer = copy.deepcopy(base), model.model.embed_tokens
    a, b = layer.factors()
    weight = layer.weight + layer.settings.scale * (b @ a).T
    if make is Dora:
        weight = weight * layer.lora_magnitude_vector / weight.norm(dim=0)
    merged.model.embed_tokens.weight.data = weight.detach()
    torch.testing.assert_close(logits(model), logits(merged))


@each_variant
def test_float32_adapters_beside_a_bfloat16_model(make):
    base = llama()
    low = copy.deepcopy(base).to(torch.bfloat16)
    config = make(include_modules=EVERYTHING, modules_to_save=["model.norm"], dim=4)
    model = adapted(config, low)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    whole = adapted(config, base)
    losses, expected = (
        train(each, config.parameter_groups(each, 1e-3), 8) for each in (model, whole)
    )
    assert losses == pytest.approx(expected, rel=0.02)


@each_variant
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_losses_under_activation_checkpointing(make, dropout):
    def losses(checkpointing):
        config = make(include_modules=EVERYTHING[:1], dropout=dropout, dim=4)
        model = adapted(config, llama())
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        return train(model, config.parameter_groups(model, 1e-2))

    assert losses(True) == losses(False)


def test_dropout_drops_only_while_training():
    model = adapted(PeftConfig(dropout=0.5), llama())
    for layer in model.model.layers:
        layer.self_attn.q_proj.lora_B.data.normal_()
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first = model(tokens()).logits
    assert not torch.equal(first, model(tokens()).logits)
    torch.manual_seed(0)
    assert torch.equal(first, model(tokens()).logits)


@pytest.mark.slow
@each_variant
def test_a_compiled_model_trains_alike(make):
    def losses(compile_it):
        config = make(include_modules=EVERYTHING, modules_to_save=["model.norm"], dim=4)
        model = adapted(config, llama())
        groups = config.parameter_groups(model, 1e-3)
        return train(torch.compile(model, fullgraph=True) if compile_it else model, groups, 5)

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)


def test_whole_modules_leave_what_they_were_tied_to():
    base = llama(tie_word_embeddings=True)
    config = PeftConfig(include_modules=["q_proj"], modules_to_save=["lm_head"])
    model = copy.deepcopy(base)
    report = config.apply(model)
    assert "lm_head was tied to model.embed_tokens.weight, which stays frozen" in report.lines
    train(model, config.parameter_groups(model, 1e-2))
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)


def test_the_report():
    config = PeftConfig(
        include_modules=["*.q_proj", "*.kproj"],
        rank_pattern={"*.1.*": 2},
        modules_to_save=["model.norm"],
    )
    assert config.select(llama()).lines == (
        "LoRA of rank 8, alpha 32, 1 modules otherwise, on 2 modules:",
        "  model.layers.*.self_attn.q_proj  2 x 32 -> 32",
        "trains as a whole: model.norm",
        "include_modules: *.kproj matches no linear layer of this model",
    )
