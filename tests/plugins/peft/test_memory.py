"""What autograd keeps for the backward pass, in bytes, beside PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from tests.plugins.peft.models import adapted, llama, tokens


def kept_bytes(model) -> int:
    """The storages that a forward pass keeps beside the model's own, each counted once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so never counted twice
        return tensor

    batch = tokens(rows=4, length=32)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=batch, labels=batch, use_cache=False)
    return sum(nbytes for nbytes, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("make", [PeftConfig, Dora])
def test_less_is_kept_than_by_peft(make, dropout, dtype):
    base = llama().to(dtype)
    ours = adapted(make(dropout=dropout), base)
    config = LoraConfig(
        r=8,
        lora_alpha=32,
        lora_dropout=dropout,
        use_dora=make is Dora,
        target_modules="all-linear",  # but the output embeddings
        task_type="CAUSAL_LM",
    )
    theirs = kept_bytes(get_peft_model(copy.deepcopy(base), config))
    mine = kept_bytes(ours)
    print(f"{make.__name__} {dtype} dropout {dropout}: {mine} beside {theirs} bytes")
    assert mine < theirs


def test_nothing_is_kept_but_the_inputs():
    """Of one layer: the storage of its input, and its own small factors."""
    model = adapted(PeftConfig(include_modules=["q_proj"], dropout=0.3), llama())
    layer = model.model.layers[0].self_attn.q_proj.train()
    x = torch.randn(4, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    large = [each for each in kept if each.numel() >= x.numel() and each is not layer.weight]
    own = {p.data_ptr() for p in layer.parameters()}
    assert {each.data_ptr() for each in large} - own == {x.data_ptr()}
