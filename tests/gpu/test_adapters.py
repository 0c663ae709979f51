"""Adapters on one GPU, beside a bfloat16 model: every variant against the CPU, and compiled."""

import pytest
import torch

from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from automodel_peft.rslora import RsLora
from tests.plugins.peft.models import llama, tokens

pytestmark = pytest.mark.gpu
VARIANTS = {"lora": PeftConfig, "rslora": RsLora, "dora": Dora, "lora_plus": LoraPlus,
            "pissa": Pissa}  # fmt: skip
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
SETTINGS = {"dim": 4, "include_modules": ["*", "embed_tokens"], "modules_to_save": ["model.norm"]}


def losses(make, device="cuda", dtype=torch.bfloat16, wrap=lambda model: model, **settings):
    """Ten steps from one start."""
    config, model = make(**SETTINGS, **settings), llama().to(device, dtype)
    config.apply(model)
    optimizer = torch.optim.AdamW(config.parameter_groups(model, 5e-4), weight_decay=0.0)
    called, found = wrap(model.train()), []
    torch.manual_seed(7)
    for step in range(10):
        batch = tokens(step % 2).to(device)
        loss = called(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    config.check(model)
    return found


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@each_variant
def test_it_follows_the_cpu(make):
    reference = losses(make, "cpu", torch.float32)
    assert losses(make, dtype=torch.float32) == pytest.approx(reference, rel=1e-3)
    assert losses(make) == pytest.approx(reference, rel=0.02)
    assert losses(make, dtype=torch.float16) == pytest.approx(reference, rel=0.01)


@each_variant
def test_dropout_is_drawn_again_under_activation_checkpointing(make):
    once, again = (losses(make, dropout=0.2, wrap=checkpointed) for _ in range(2))
    assert once == again
    assert losses(make, dropout=0.2) == pytest.approx(once, rel=1e-3)


@each_variant
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_it_compiles_into_one_graph(make, dropout):
    compiled = losses(
        make, dropout=dropout, wrap=lambda model: torch.compile(model, fullgraph=True)
    )
    tolerance = 0.02 if dropout == 0.0 else 0.2  # a compiled model draws other masks
    assert compiled == pytest.approx(losses(make, dropout=dropout), rel=tolerance)
    assert compiled[-1] < compiled[0]
