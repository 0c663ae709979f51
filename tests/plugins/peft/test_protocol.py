"""What the core asks of every adapter, ours and the third party's."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import adapted, llama, logits, train

THIRD_PARTY = Path(__file__).parents[2] / "fixtures" / "third_party" / "good" / "src"


@pytest.fixture(params=["lora", "rslora", "dora", "lora_plus", "pissa", "third party"])
def make(request, monkeypatch):
    if request.param == "third party":
        monkeypatch.syspath_prepend(str(THIRD_PARTY))
        from automodel_echo.norms import NormTuning

        yield NormTuning
        for name in [each for each in sys.modules if each.startswith("automodel_echo")]:
            del sys.modules[name]
        return
    variants = {"rslora": RsLora, "dora": Dora, "lora_plus": LoraPlus, "pissa": Pissa}
    yield variants.get(request.param, PeftConfig)


def test_what_is_selected_without_weights_is_what_is_applied(make):
    with torch.device("meta"):
        before = make().select(llama())
    config, model = make(), llama()
    report = config.apply(model)
    assert tuple(report) == tuple(before)
    training = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in training} == {config.dtype}
    assert report.trainable == sum(p.numel() for p in training)
    assert all(model.get_submodule(name) for name in report.modules)


def test_the_model_starts_as_it_was(make):
    base = llama()
    assert torch.equal(logits(adapted(make(), base)), logits(base))


def test_all_that_trains_is_in_one_group_each(make):
    config, model = make(), llama()
    config.apply(model)
    groups = config.parameter_groups(model, 0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert groups[0]["lr"] == 0.5


def test_a_saved_adapter_is_loaded_to_the_last_bit(make, tmp_path):
    config, base = make(), llama()
    model = copy.deepcopy(base)
    config.apply(model)
    train(model, config.parameter_groups(model, 1e-2))
    kept = {name: tensor.detach().clone() for name, tensor in config.state(model).items()}
    expected = logits(model)
    train(model, config.parameter_groups(model, 1e-2))  # it moves on while the copy is written
    config.save(model, tmp_path / "new" / "folder", kept, "some/base", None)
    again, fresh = make(), copy.deepcopy(base)
    again.apply(fresh)
    again.load(fresh, tmp_path / "new" / "folder")
    assert torch.equal(logits(fresh), expected)


def test_the_base_with_merged_weights_computes_what_the_adapted_model_does(make, tmp_path):
    config, base = make(), llama()
    model = copy.deepcopy(base)
    config.apply(model)
    train(model, config.parameter_groups(model, 1e-2))
    config.save(model, tmp_path, config.state(model), "some/base", None)
    with torch.device("meta"):
        merger = make().merger(llama(), tmp_path)
    weights = base.state_dict()
    assert merger.names <= weights.keys()
    untouched = logits(base)
    merged = {name: merger.merge(name, weights[name]) for name in merger.names}
    assert torch.equal(logits(base), untouched), "the base is left as it was"
    base.load_state_dict(weights | merged)
    assert (logits(model) - untouched).abs().max() > 1e-3
    assert (logits(base) - logits(model)).abs().max() < 1e-5


def test_a_run_that_was_interrupted_goes_on_exactly(make, tmp_path):
    def start():
        config, model = make(), llama()
        config.apply(model)
        return config, model, torch.optim.AdamW(config.parameter_groups(model, 1e-2))

    def go_on(model, optimizer, steps):
        for step in steps:
            batch = torch.arange(12).reshape(2, 6) + step
            model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    config, model, optimizer = start()
    go_on(model, optimizer, range(6))
    half, first, its_optimizer = start()
    go_on(first, its_optimizer, range(3))
    half.save(first, tmp_path, half.state(first), "some/base", None)
    resumed, second, other_optimizer = start()
    resumed.load(second, tmp_path)
    other_optimizer.load_state_dict(its_optimizer.state_dict())
    go_on(second, other_optimizer, range(3, 6))
    assert torch.equal(logits(second), logits(model))
    assert all(torch.equal(t, config.state(model)[n]) for n, t in resumed.state(second).items())


def test_the_check_tells_what_trained_from_what_did_not(make):
    config, model = make(), llama()
    config.apply(model)
    with pytest.raises(Exception, match="changed"):
        config.check(model)
    train(model, config.parameter_groups(model, 1e-2), 1)
    config.check(model)
