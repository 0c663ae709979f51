"""Which modules are chosen, on language models, one that sees, GPT-2 and made-up trees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    SiglipVisionConfig,
)

from automodel_core.errors import UserError
from automodel_peft.candidates import grouped, linear_layers
from automodel_peft.selection import Patterns, choose
from tests.plugins.peft.models import llama

MODEL = llama(num_hidden_layers=12)
LINEARS = list(linear_layers(MODEL))
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


def chosen(model=MODEL, **patterns):
    return list(choose(model, Patterns(**patterns)).adapted)


def test_the_default_is_every_linear_of_the_language_model_but_its_head():
    assert chosen() == [name for name in LINEARS if name != "lm_head"]


def test_all_linear_is_all_linear():
    assert chosen(match_all_linear=True) == LINEARS


def test_exclude_always_subtracts():
    every = set(chosen())
    assert set(chosen(exclude=["*.layers.1.*"])) == {n for n in every if ".layers.1." not in n}
    assert chosen(match_all_linear=True, exclude=["*lm_head*"]) == chosen()
    both = chosen(include=["*.q_proj", "*.v_proj"], exclude=["*.layers.11.*", "v_proj"])
    assert both == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(11)]


def test_layer_1_is_not_layer_11():
    names = chosen(include=["*.layers.1.*"])
    assert len(names) == 7
    assert all(name.startswith("model.layers.1.") for name in names)


@given(
    st.lists(st.sampled_from(["*.q_proj", "k_proj", "*.1.*", "*mlp*", "lm_head"]), min_size=1),
    st.lists(st.sampled_from(["*.v_proj", "down_proj", "*.11.*", "*self_attn*", "nothing"])),
)
def test_include_minus_exclude_in_the_order_of_the_model(include, exclude):
    def alone(patterns):
        return {n for p in patterns if p != "nothing" for n in chosen(include=[p])}

    expected = alone(include) - alone(exclude)
    if expected:
        names = chosen(include=include, exclude=exclude)
        assert names == [name for name in LINEARS if name in expected]
    else:
        with pytest.raises(UserError):
            chosen(include=include, exclude=exclude)


def test_embeddings_are_meant_by_patterns_that_mean_nothing_else():
    assert chosen(include=["*"]) == LINEARS
    assert chosen(include=["model.*"]) == chosen()
    assert chosen(include=["embed_tokens"]) == ["model.embed_tokens"]
    assert chosen(include=["*embed*", "lm_head"]) == ["model.embed_tokens", "lm_head"]


def test_both_ways_of_including_contradict_each_other():
    with pytest.raises(UserError) as raised:
        chosen(match_all_linear=True, include=["*.q_proj"])
    assert raised.value.argument == "include_modules"


def test_no_match_lists_the_linears_there_are():
    with pytest.raises(UserError) as raised:
        chosen(include=["*.query"])
    assert raised.value.argument == "include_modules"
    assert raised.value.message.splitlines() == [
        "No linear layer or embedding is meant by *.query.",
        "  Its linear layers are:",
        "  lm_head  32 -> 96",
        "  model.layers.*.mlp.down_proj  12 x 48 -> 32",
        "  model.layers.*.mlp.gate_proj  12 x 32 -> 48",
        "  model.layers.*.mlp.up_proj  12 x 32 -> 48",
        "  model.layers.*.self_attn.k_proj  12 x 32 -> 16",
        "  model.layers.*.self_attn.o_proj  12 x 32 -> 32",
        "  model.layers.*.self_attn.q_proj  12 x 32 -> 32",
        "  model.layers.*.self_attn.v_proj  12 x 32 -> 16",
    ]


def test_nothing_left_is_the_fault_of_exclude():
    with pytest.raises(UserError) as raised:
        chosen(exclude=["*"])
    assert raised.value.argument == "exclude_modules"


def test_one_pattern_of_several_without_a_match_is_noted():
    found = choose(MODEL, Patterns(include=["*.q_proj", "*.query"]))
    assert len(found.adapted) == 12
    assert found.notes == ("include_modules: *.query matches no linear layer of this model",)


def test_whole_modules_are_not_adapted_too():
    found = choose(MODEL, Patterns(train=["lm_head", "model.layers.0.mlp", "*.mlp.up_proj"]))
    assert list(found.trained)[:2] == ["model.layers.0.mlp", "model.layers.1.mlp.up_proj"]
    assert not any("up_proj" in name or ".0.mlp" in name for name in found.adapted)


@pytest.mark.parametrize("pattern", ["norms", "act_fn"])
def test_whole_modules_that_cannot_train_are_refused(pattern):
    with pytest.raises(UserError) as raised:
        choose(MODEL, Patterns(train=[pattern]))
    assert raised.value.argument == "modules_to_save"


def test_a_model_that_sees():
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            **SIZES, num_attention_heads=2, image_size=8, patch_size=4
        ),
        text_config=LlamaConfig(
            **SIZES, vocab_size=8, num_attention_heads=2, num_key_value_heads=2
        ),
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    every = list(linear_layers(model))
    assert chosen(model) == [f"model.language_model.layers.0.{n}" for n in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )]  # fmt: skip
    assert len(chosen(model, match_all_linear=True)) == len(every) > len(chosen(model))
    seen = chosen(model, match_all_linear=True, exclude=["*vision_tower*", "*lm_head*"])
    assert seen == [name for name in every if "vision" not in name and name != "lm_head"]
    # SigLIP's pooling reads the weight of this one without calling it.
    assert not any(name.endswith("attention.out_proj") for name in every)


def test_gpt2():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
    assert grouped(choose(model, Patterns()).adapted) == (
        "transformer.h.*.attn.c_attn  8 -> 24",
        "transformer.h.*.attn.c_proj  8 -> 8",
        "transformer.h.*.mlp.c_fc  8 -> 32",
        "transformer.h.*.mlp.c_proj  32 -> 8",
    )


def test_a_linear_at_the_root():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(2, 2)
            self.deep = nn.ModuleList([nn.Linear(2, 2)])

        def get_output_embeddings(self):
            return None

    assert chosen(Rooted(), include=["*.q_proj"]) == ["q_proj"]
    assert chosen(Rooted()) == ["q_proj", "deep.0"]
