"""`automodel explain` of a configuration with adapters: what is selected, and how much trains."""

import pytest
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from automodel_core.cli import main


@pytest.fixture
def explain(config_file, tmp_path, capsys):
    """Explain the base configuration with a `peft:` section; returns exit code and output."""

    def run(peft, **changes):
        code = main(["explain", config_file({"peft": peft, **changes}, tmp_path / "run")])
        return (code, *capsys.readouterr())

    return run


def test_it_tells_what_peft_would_adapt_and_train(explain, tiny_model):
    code, printed, _ = explain({"_target_": "lora", "dim": 4, "include_modules": ["*.v_proj"]})
    assert code == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    total = base.num_parameters()
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["v_proj"]))
    trainable, _ = adapted.get_nb_trainable_parameters()
    lines = [line for line in printed.splitlines() if line.startswith("# peft: ")]
    assert lines == [
        "# peft: LoRA of rank 4, alpha 32, on 2 modules:",
        "# peft:   model.layers.*.self_attn.v_proj  2 x 32 -> 16",
        f"# peft: {trainable:,} parameters train; the model has {total:,} (1.24%)",
    ]
    assert YAML(typ="safe").load(printed)["peft"]["dim"] == 4, "it is still a configuration"


def test_a_model_that_is_not_at_hand_is_one_line_and_no_failure(explain):
    missing = {"pretrained_model_name_or_path": "/nowhere/model"}
    code, printed, complaint = explain({"_target_": "lora"}, model=missing)
    assert (code, complaint) == (0, "")
    assert printed.splitlines()[-1] == (
        "# peft: what it selects is not known: There is no folder /nowhere/model."
    )


def test_an_adapter_that_fits_nothing_is_refused_at_its_line(explain):
    code, printed, complaint = explain({"_target_": "lora", "include_modules": ["*.qq"]})
    assert code == 2
    assert "checkpoint_dir:" in printed, "everything else is printed first"
    assert "config.yaml:" in complaint
    assert "*.qq" in complaint
