"""The variant that the README shows is all that it takes, and PEFT opens what it saves."""

import copy
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.plugins.peft.models import adapted, llama, logits, train

README = Path(__file__).parents[3] / "plugins" / "peft" / "README.md"


@pytest.fixture
def variant(monkeypatch):
    """The class of the README, imported from where its entry point says."""
    text = README.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    module, name = re.search(r'lora_fa = "(.+):(.+)"', text).groups()
    package = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, package)
    exec(compile(code, str(README), "exec"), package.__dict__)  # our own README
    return getattr(package, name)


def test_it_trains_what_it_says_and_opens_in_peft(variant, tmp_path):
    base, config = llama(), variant(dim=4, alpha=8)
    chosen = config.select(base)
    assert chosen.lines[0] == "LoRA-FA of rank 4, alpha 8, on 14 modules:"
    model = adapted(config, base)
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith("lora_B") for name in training)
    assert sum(p.numel() for p in training.values()) == chosen.trainable
    train(model, config.parameter_groups(model, 1e-2))
    config.check(model)
    config.save(model, tmp_path, config.state(model), "some/base", None)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert (logits(model) - logits(base)).abs().max() > 0.01
    assert (logits(model) - logits(theirs)).abs().max() < 1e-5
    with torch.device("meta"):
        merger = config.merger(llama(), tmp_path)
    weights = base.state_dict()
    base.load_state_dict(weights | {n: merger.merge(n, weights[n]) for n in merger.names})
    assert (logits(base) - logits(model)).abs().max() < 1e-5
