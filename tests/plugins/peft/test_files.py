"""Folders that PEFT opens, and folders of PEFT that are opened here."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig

from automodel_core.errors import UserError
from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import adapted, llama, logits, train

VARIANTS = {"lora": PeftConfig, "rslora": RsLora, "dora": Dora, "lora_plus": LoraPlus,
            "pissa": Pissa}  # fmt: skip
SETTINGS = {
    "dim": 4,
    "alpha": 6,
    "include_modules": ["*.q_proj", "*.mlp.*", "embed_tokens"],
    "rank_pattern": {"*.1.self_attn.*": 2},
    "alpha_pattern": {"*.0.*": 3},
    "modules_to_save": ["model.norm", "lm_head"],
    "dropout": 0.1,
}


def trained(config, base, steps=3):
    model = adapted(config, base)
    train(model, config.parameter_groups(model, 1e-2), steps)
    return model


def saved(config, model, folder, name="some/base", revision="c0ffee"):
    config.save(model, folder, config.state(model), name, revision)
    return folder


def of_peft(base, folder, **settings):
    """Train an adapter with PEFT and save it."""
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 4, "lora_alpha": 6} | settings))
    train(model, [p for p in model.parameters() if p.requires_grad])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_peft_opens_every_variant_with_equal_logits(make, tied, tmp_path):
    base, config = llama(tie_word_embeddings=tied), make(**SETTINGS)
    model = trained(config, base)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), saved(config, model, tmp_path))
    assert (logits(model) - logits(base)).abs().max() > 0.01
    assert (logits(model) - logits(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_what_was_saved_is_loaded_to_the_last_bit(make, tmp_path):
    base, config = llama(), make(**SETTINGS)
    model = trained(config, base)
    again, fresh = make(**SETTINGS), copy.deepcopy(base)
    again.apply(fresh)
    again.load(fresh, saved(config, model, tmp_path))
    expected = dict(model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in fresh.named_parameters())
    assert torch.equal(logits(fresh), logits(model))


def test_pissa_is_a_lora_of_twice_the_rank_on_the_original(tmp_path):
    base, config = llama(), Pissa(dim=4, alpha=6)
    model = trained(config, base)
    folder = saved(config, model, tmp_path)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (8, 12)
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight
    )
    going_on = PeftConfig(adapter_path=str(folder))
    assert (logits(adapted(going_on, base)) - logits(model)).abs().max() < 1e-5


def test_the_configuration_says_what_was_done(tmp_path):
    config = Dora(**SETTINGS)
    folder = saved(config, trained(config, llama()), tmp_path)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "some/base"
    assert written["revision"] == "c0ffee"
    assert written["task_type"] == "CAUSAL_LM"
    assert written["use_dora"] is True
    assert written["lora_dropout"] == 0.1
    assert written["modules_to_save"] == ["model.norm", "lm_head"]
    assert set(written["target_modules"]) == {
        "model.embed_tokens",
        *(f"model.layers.{i}.{n}" for i in (0, 1) for n in (
            "self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
    }  # fmt: skip
    assert written["rank_pattern"] == {r"^model\.layers\.1\.self_attn\.q_proj": 2}


def test_a_name_that_ends_like_another_is_told_apart(tmp_path):
    """PEFT takes a module's name for every module whose name ends in it."""

    class Two(nn.Module):
        config = PretrainedConfig()

        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(4, 4)
            self.tower = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})

        def get_output_embeddings(self):
            return None

        def prepare_inputs_for_generation(self):
            """PEFT asks whether it is there."""

        def forward(self, x):
            return self.q_proj(x) + self.tower["q_proj"](x)

    base, config = Two(), PeftConfig(include_modules=["q_proj"], exclude_modules=["tower.*"])
    model = adapted(config, base)
    model.q_proj.lora_B.data.normal_()
    theirs = PeftModel.from_pretrained(base, saved(config, model, tmp_path))
    x = torch.randn(3, 4)
    assert [n for n, _ in theirs.named_modules() if n.endswith("lora_A")] == [
        "base_model.model.q_proj.lora_A"
    ]
    torch.testing.assert_close(theirs.base_model.model(x), model(x))


PEFTS = {
    "list": (PeftConfig, {"target_modules": ["q_proj", "up_proj"]}),
    "regex": (PeftConfig, {"target_modules": r".*\.(q|v)_proj"}),
    "all": (PeftConfig, {"target_modules": "all-linear"}),
    "rslora": (RsLora, {"target_modules": ["q_proj"], "use_rslora": True}),
    "dora": (Dora, {"target_modules": ["q_proj"], "use_dora": True}),
    "embeddings": (PeftConfig, {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole modules": (PeftConfig, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "patterns": (
        PeftConfig,
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
            "alpha_pattern": {"up_proj": 16},
        },
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFTS)
def test_what_peft_trained_goes_on_here(case, tmp_path):
    make, settings = PEFTS[case]
    base = llama()
    theirs = of_peft(base, tmp_path / "theirs", **settings)
    config = make(adapter_path=str(tmp_path / "theirs"))
    mine = adapted(config, base)
    assert (logits(mine) - logits(theirs)).abs().max() < 1e-5

    ours = train(mine, config.parameter_groups(mine, 1e-2), 5)
    assert ours == pytest.approx(
        train(theirs, [p for p in theirs.parameters() if p.requires_grad], 5), rel=1e-5
    )
    config.check(mine)
    again = PeftModel.from_pretrained(copy.deepcopy(base), saved(config, mine, tmp_path / "ours"))
    assert (logits(mine) - logits(again)).abs().max() < 1e-5


def changed(folder, **settings):
    """Rewrite keys of a folder's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture
def folder(tmp_path):
    config = PeftConfig(dim=4, include_modules=["*.q_proj"])
    return saved(config, trained(config, llama()), tmp_path / "adapter")


def refusal(folder, make=PeftConfig, model=None, **settings):
    with pytest.raises(UserError) as raised:
        make(adapter_path=str(folder), **settings).apply(model or llama())
    return raised.value


def test_a_folder_that_is_no_adapter(tmp_path):
    assert "no adapter" in refusal(tmp_path).message


def test_a_damaged_file(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert "damaged" in refusal(folder).message


def test_an_empty_file(folder):
    save_file({}, folder / "adapter_model.safetensors")
    assert "no tensor" in refusal(folder).message


def test_a_pickle_is_not_read(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "pickle" in refusal(folder).message


@pytest.mark.parametrize(
    "settings",
    [{"peft_type": "IA3"}, {"bias": "all"}, {"use_qalora": True}, {"trainable_token_indices": [1]}],
)
def test_kinds_of_adapters_that_are_not_understood(folder, settings):
    changed(folder, **settings)
    assert "can't be trained here" in refusal(folder).message


def test_an_adapter_on_a_base_that_peft_changed(folder):
    changed(folder, init_lora_weights="pissa_niter_4")
    assert "not to the original" in refusal(folder).message


def test_an_adapter_of_another_variant_names_it(folder):
    error = refusal(folder, Dora)
    assert error.fix == "write _target_: lora"
    changed(folder, use_dora=True)
    assert refusal(folder).fix == "write _target_: dora"


def test_an_adapter_of_another_model_names_its_own(folder):
    error = refusal(folder, model=llama(num_hidden_layers=1))
    assert "some/base" in error.fix
    assert "is 4x32 there and 4x64 here" in refusal(folder, model=llama(hidden_size=64)).message


def test_a_run_does_not_go_on_from_another_adapter(folder):
    config, model = PeftConfig(dim=4, include_modules=["*.v_proj"]), llama()
    config.apply(model)
    with pytest.raises(UserError, match="holds another adapter"):
        config.load(model, folder)


def test_sizes_that_contradict_the_adapter(folder):
    assert refusal(folder, dim=16).argument == "dim"
    assert refusal(folder, alpha=1).argument == "alpha"
    assert refusal(folder, include_modules=["q_proj"]).argument == "include_modules"
    PeftConfig(adapter_path=str(folder), dim=4, alpha=32).apply(llama())


def test_embeddings_that_came_with_the_adapter_must_be_the_models(tmp_path):
    of_peft(llama(), tmp_path, target_modules=["embed_tokens"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert "an embedding of its own" in refusal(tmp_path).message
