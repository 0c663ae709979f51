"""PEFT is the referee: the same start and the same batches give the same losses."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import GPT2Config, GPT2LMHeadModel

from automodel_peft.dora import Dora
from automodel_peft.export import adapted_layers
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import VOCABULARY, adapted, llama, logits, train
from tests.variants import mostly_slow

LAYERS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
STEPS, RATE = 50, 3e-3
VARIANTS = {
    "lora": (PeftConfig, {}),
    "rslora": (RsLora, {"use_rslora": True}),
    "dora": (Dora, {"use_dora": True}),
}


def of_peft(model, layers=tuple(LAYERS), **settings):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(layers), **settings)
    return get_peft_model(copy.deepcopy(model), config)


def copy_start(theirs, ours):
    """Give our adapter the first values of theirs."""
    modules = dict(theirs.base_model.model.named_modules())
    for name, layer in adapted_layers(ours).items():
        module = modules[name]
        if hasattr(layer, "lora_A"):
            layer.lora_A.data.copy_(module.lora_A["default"].weight)
        else:
            layer.lora_embedding_B.data.copy_(module.lora_embedding_B["default"])


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_same_losses(ours, theirs):
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("variant", "bias"), mostly_slow(VARIANTS, [False, True], fast=[("dora", True)])
)
def test_the_losses_of_a_run(variant, bias, tmp_path):
    base = llama(attention_bias=bias, mlp_bias=bias)
    make, settings = VARIANTS[variant]
    config = make(dim=4, alpha=8, include_modules=LAYERS)
    mine, theirs = adapted(config, base), of_peft(base, **settings)
    copy_start(theirs, mine)
    expected = train(theirs, trainable(theirs), STEPS, RATE)
    assert_same_losses(train(mine, config.parameter_groups(mine, RATE), STEPS), expected)
    assert (logits(mine) - logits(theirs)).abs().max() < 1e-3

    config.save(mine, tmp_path, config.state(mine), "base", None)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert (logits(mine) - logits(reloaded)).abs().max() < 1e-5


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, fast=["dora"]))
def test_embeddings(variant):
    base, layers = llama(), ["embed_tokens", "q_proj"]
    make, settings = VARIANTS[variant]
    config = make(dim=4, alpha=8, include_modules=layers)
    mine, theirs = adapted(config, base), of_peft(base, layers, **settings)
    copy_start(theirs, mine)
    expected = train(theirs, trainable(theirs), STEPS, RATE)
    assert_same_losses(train(mine, config.parameter_groups(mine, RATE), STEPS), expected)


def test_layers_that_store_their_weight_the_other_way():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2,
                   attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, initializer_range=0.1)
    )  # fmt: skip
    for make, settings in VARIANTS.values():
        config = make(dim=4, alpha=8, include_modules=["c_attn", "c_fc"])
        mine = adapted(config, base)
        theirs = of_peft(base, ["c_attn", "c_fc"], fan_in_fan_out=True, **settings)
        copy_start(theirs, mine)
        expected = train(theirs, trainable(theirs), 20, RATE)
        assert_same_losses(train(mine, config.parameter_groups(mine, RATE), 20), expected)


def test_ranks_and_alphas_by_pattern_and_whole_modules():
    base = llama()
    config = PeftConfig(
        dim=4,
        alpha=8,
        include_modules=LAYERS,
        modules_to_save=["model.norm", "lm_head"],
        rank_pattern={"*.1.*.q_proj": 2},
        alpha_pattern={"*.mlp.*": 3},
    )
    theirs = of_peft(
        base,
        modules_to_save=["model.norm", "lm_head"],
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 2},
        alpha_pattern={"gate_proj": 3, "down_proj": 3},
    )
    mine = adapted(config, base)
    copy_start(theirs, mine)
    expected = train(theirs, trainable(theirs), STEPS, RATE)
    assert_same_losses(train(mine, config.parameter_groups(mine, RATE), STEPS), expected)


def test_the_two_rates_of_lora_plus():
    base = llama()
    config = LoraPlus(dim=4, alpha=8, include_modules=LAYERS, lr_ratio=4.0)
    mine, theirs = adapted(config, base), of_peft(base)
    copy_start(theirs, mine)
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.0
    )
    groups = [group for group in optimizer.param_groups if group["params"]]
    expected = train(theirs, [{k: g[k] for k in ("params", "lr")} for g in groups], STEPS)
    assert_same_losses(train(mine, config.parameter_groups(mine, RATE), STEPS), expected)


def test_the_principal_part_that_pissa_starts_from(monkeypatch):
    """PEFT trains the factors and changes the base; we train their changes and leave it."""

    def exact(weight, q, niter):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :q], s[:q], v[:q].T

    monkeypatch.setattr(torch, "svd_lowrank", exact)
    base = llama()
    config = Pissa(dim=4, alpha=8, include_modules=LAYERS)
    mine, theirs = adapted(config, base), of_peft(base, init_lora_weights="pissa")
    expected = train(theirs, trainable(theirs), STEPS, RATE)
    assert_same_losses(train(mine, config.parameter_groups(mine, RATE), STEPS), expected)


def test_the_randomised_decomposition_finds_the_principal_part():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=generator)
    model = llama()
    layer = model.model.layers[0].mlp.gate_proj
    layer.weight.data = weight
    layer.in_features, layer.out_features = 30, 40
    Pissa(dim=4, alpha=8, include_modules=["model.layers.0.mlp.gate_proj"]).apply(model)
    u, s, v = torch.linalg.svd(weight)
    principal = (u[:, :4] * s[:4]) @ v[:4]
    found = 2.0 * layer.start_B @ layer.start_A
    assert (found - principal).norm() < 1e-3 * principal.norm()
    assert math.isclose(layer.settings.scale, 2.0)
