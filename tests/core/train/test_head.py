"""Every way that transformers' models have of making logits of hidden states."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from automodel_core.errors import UserError
from automodel_core.train.head import check_head, split_head

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "falcon_h1": {"lm_head_multiplier": 0.25, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
}


def tiny(model_type, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **MODELS[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # logits large enough for a soft cap to show
        model.get_output_embeddings().weight.mul_(50)
    return model


@pytest.mark.parametrize("model_type", MODELS)
def test_the_parts_make_the_same_logits_and_gradients_as_the_whole(model_type):
    model = tiny(model_type).eval()
    split = split_head(model)
    check_head(model, split)
    tokens = torch.randint(64, (2, 7))
    mask = torch.ones_like(tokens)
    gradients = []
    for logits in (
        model(input_ids=tokens, attention_mask=mask).logits,
        split.head(split.backbone(input_ids=tokens, attention_mask=mask)),
    ):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole)


def test_scales_and_caps_are_really_at_work():
    for model_type, change in (
        ("gemma2", {"final_logit_softcapping": None}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logits_scaling": 1.0}),
        ("falcon_h1", {"lm_head_multiplier": 1.0}),
    ):
        plain = split_head(tiny(model_type, **change))
        with pytest.raises(UserError):
            check_head(tiny(model_type), plain)


class Tempered(LlamaForCausalLM):
    """Does something to its logits that nobody was told of."""

    def forward(self, input_ids, use_cache=False):
        output = super().forward(input_ids=input_ids, use_cache=use_cache)
        output.logits = output.logits + 0.1 * output.logits.roll(1, -1)
        return output


def test_an_unknown_head_is_refused_with_the_loss_that_works():
    model = Tempered(LlamaConfig(**SMALL)).train()
    with pytest.raises(UserError, match="Tempered") as refused:
        check_head(model, split_head(model))
    assert "masked_ce" in refused.value.fix
    assert refused.value.path == ("loss_fn",)
    assert model.training, "left as it was found"


def test_a_model_without_output_embeddings_is_refused():
    with pytest.raises(UserError, match="can't be trained from its hidden states"):
        split_head(LlamaForCausalLM(LlamaConfig(**SMALL)).base_model)
