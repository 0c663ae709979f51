"""The words of every refusal, as a user reads them. `pytest --snapshot-update` after a change."""

import pytest

from automodel_core.config.schema import Slot

OPTIMIZER = Slot("optimizers", use="partial", given=("params",))

REFUSALS = {
    "unknown name": ("adamww", OPTIMIZER, {}),
    "nothing near": ("completely_else", OPTIMIZER, {}),
    "another kind": ("squad", OPTIMIZER, {}),
    "slip in a foreign name": ("nemo_automodel.components.training.rng.RNG", Slot("rng"), {}),
    "not trusted": ("my_package.Lion", OPTIMIZER, {}),
    "not what it seems": ("torch.optim.adam.Tensor", OPTIMIZER, {}),
    "dunder": ("torch.optim.Adam.__init__", OPTIMIZER, {}),
    "no name at all": ("lion.py:Lion", OPTIMIZER, {}),
    "not in its module": ("torch.optim.Adamm", OPTIMIZER, {}),
    "model that reads weights": ("transformers.LlamaForCausalLM", Slot("models"), {}),
    "unknown argument": ("adamw", OPTIMIZER, {"leraning_rate": 1.0}),
    "argument of another": ("sgd", OPTIMIZER, {"betas": [0.9, 0.95]}),
    "text for a number": ("adamw", OPTIMIZER, {"lr": "1e-5"}),
    "wrong list": ("adamw", OPTIMIZER, {"betas": [0.9]}),
    "engine's own": ("adamw", OPTIMIZER, {"params": []}),
    "missing argument": ("torch.optim.lr_scheduler.StepLR", None, {"optimizer": 1}),
    "remote code": ("transformers.AutoConfig.from_pretrained", None, {"trust_remote_code": True}),
    "broken": ("broken_one", Slot("losses"), {}),
    "disabled": ("disabled_one", Slot("losses"), {}),
    "conflict": ("twice", Slot("losses"), {}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, install, check, snapshot, monkeypatch):
    monkeypatch.setenv("AUTOMODEL_DISABLE_PLUGINS", "disabled_one")
    losses = {"broken_one": "gone:make", "disabled_one": "one:make", "twice": "one:make"}
    install("one", {"losses": losses}, {"one": "def make(): ...\n"})
    install("two", {"losses": {"twice": "two:make"}}, {"two": "def make(): ...\n"})
    name, slot, arguments = REFUSALS[case]
    findings = check(name, slot, **arguments)
    assert findings
    lines = [f"{'.'.join(map(str, f.path))} ({f.on}): {f.message}\n    {f.hint}" for f in findings]
    assert "\n".join(lines) == snapshot
