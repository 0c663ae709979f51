"""The operations of a step by formula are those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from automodel_core.bench.flops import StepFlops
from automodel_peft.lora import PeftConfig

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3, wide heads": Qwen3Config(**SHAPE, head_dim=16),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96),
}
LENGTH = 24


def counted(model: torch.nn.Module) -> int:
    tokens = torch.arange(LENGTH)[None] % 90
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    return counter.get_total_flops()


def by_formula(model: torch.nn.Module) -> float:
    """Torch counts every score of an attention that looks at all tokens: twice the causal ones."""
    flops = StepFlops.of(model)
    return flops.step([LENGTH]) + flops.attention * LENGTH**2 / 2


@pytest.mark.parametrize("kind", CONFIGS)
def test_full_fine_tuning(kind):
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="eager")
    assert by_formula(model) == pytest.approx(counted(model), rel=1e-9)


def test_adapters_beside_a_frozen_base():
    """The formula counts the gradient of the first layer's input too, which nobody needs; and it
    doesn't count that our adapters compute their inner product again in the backward pass."""
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation="eager")
    PeftConfig(dim=4, include_modules=["*.q_proj", "*.k_proj", "*.v_proj"]).apply(model)
    layers = [layer.self_attn for layer in model.model.layers]
    first = (layers[0].q_proj, layers[0].k_proj, layers[0].v_proj)
    unneeded = sum(2 * LENGTH * (x.weight.numel() + x.lora_A.numel()) for x in first)
    again = sum(2 * LENGTH * x.lora_A.numel() for x in first) * len(layers)
    assert by_formula(model) - unneeded + again == pytest.approx(counted(model), rel=1e-9)


def test_documents_of_a_packed_row_attend_to_themselves_alone():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    flops = StepFlops.of(model)
    assert flops.step([12, 12]) == flops.step([24]) - flops.attention * 12 * 12


def test_models_that_the_formula_does_not_fit_have_none():
    class Config(LlamaConfig):
        num_local_experts = 4

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.config = Config(**SHAPE)
    assert StepFlops.of(model) is None
