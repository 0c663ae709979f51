"""Adapters on a model of the meta device, whose weights are read after, by its shards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from automodel_core.errors import UserError
from automodel_core.train.sharded.reading import read_sharded
from automodel_peft.dora import Dora
from automodel_peft.export import adapted_layers
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import llama, logits, train
from tests.processes import Processes
from tests.sharding import FSDP_2, assert_same_shards, loss_of, on_meta, shard
from tests.variants import mostly_slow

EVERYTHING = ["*", "embed_tokens"]
CPU = torch.device("cpu")


def without_weights(dtype=torch.float32, **changes):
    return on_meta(llama(**changes).config, dtype)


@pytest.mark.parametrize(
    ("make", "tied", "dtype"),
    mostly_slow(
        [PeftConfig, RsLora, LoraPlus],
        [False, True],
        [torch.float32, torch.bfloat16],
        fast=[
            (PeftConfig, True, torch.float32),
            (RsLora, False, torch.bfloat16),
            (LoraPlus, True, torch.bfloat16),
        ],
    ),
)
def test_what_is_added_before_the_weights_are_read_is_what_is_added_after(
    make, tied, dtype, tmp_path
):
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path)
    config = make(include_modules=EVERYTHING, dim=4, alpha=10)
    expected = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    report = config.apply(expected)

    model, other = without_weights(dtype, tie_word_embeddings=tied), make(**_keys(config))
    assert other.apply(model) == report
    for layer in adapted_layers(model).values():
        assert layer.weight.is_meta
        assert {each.device for each in (*layer.factors(), layer.lora_scale)} == {CPU}
    read_sharded(model, tmp_path, CPU)

    held, wanted = model.state_dict(), expected.state_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], wanted[name]) for name in wanted)
    assert {p.requires_grad for p in model.parameters()} == {True, False}
    losses = [
        train(each, by.parameter_groups(each, 1e-2))
        for each, by in ((model, other), (expected, config))
    ]
    assert losses[0] == losses[1]
    assert torch.equal(logits(model), logits(expected))
    other.check(model)


def _keys(config):
    return {name: getattr(config, name) for name in ("include_modules", "dim", "alpha")}


def reads_the_shards_of_the_base(folder) -> None:
    model, expected = without_weights(), LlamaForCausalLM.from_pretrained(folder)
    for each in (model, expected):
        PeftConfig(include_modules=EVERYTHING, dim=4).apply(each)
    read_sharded(shard(model, FSDP_2), folder, CPU)
    assert_same_shards(model, shard(expected, FSDP_2))
    assert loss_of(model) == loss_of(expected)


def test_two_processes_share_what_one_reads(tmp_path):
    llama().save_pretrained(tmp_path)
    with Processes(2) as two:
        two.run(reads_the_shards_of_the_base, tmp_path)


@pytest.mark.parametrize(
    ("make", "named"), [(Dora, "DoRA"), (Pissa, "PiSSA"), (PeftConfig, "as a whole")]
)
def test_what_starts_from_the_weights_refuses_a_model_without(make, named):
    whole = ["model.norm"] if make is PeftConfig else None
    model = without_weights()
    with pytest.raises(UserError, match=f"{named} starts from the model's weights") as refused:
        make(modules_to_save=whole).apply(model)
    assert ("model.norm" if whole else "q_proj") in refused.value.message
    assert not adapted_layers(model), "and leaves it as it was"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_embedding_in_the_file_is_not_taken_on_trust(tmp_path):
    settings = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(llama(), settings).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match="isn't read yet"):
        PeftConfig(adapter_path=str(tmp_path)).apply(without_weights())


def test_an_adapter_to_go_on_from_is_taken_over_before_the_weights_are_read(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    first, trained = PeftConfig(dim=4), llama()
    first.apply(trained)
    train(trained, first.parameter_groups(trained, 1e-2))
    first.save(trained, tmp_path / "adapter", first.state(trained), "some/base", None)
    model = without_weights()
    PeftConfig(adapter_path=str(tmp_path / "adapter")).apply(model)
    read_sharded(model, tmp_path / "base", CPU)
    assert torch.equal(logits(model), logits(trained))
