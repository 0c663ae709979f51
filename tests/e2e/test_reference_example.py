"""The reference's complete example of an LLM with PEFT, as it stands but for model and data."""

import os
import signal
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from automodel_core.cli import main
from tests.same_run import after_step

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "reference" / "complete_llm_peft.yaml"
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_it_trains_saves_every_100_steps_and_opens_in_peft(
    tiny_model, squad_folder, tmp_path, monkeypatch, capsys
):
    """A signal ends it after its first checkpoint: it asks for 1000 steps."""
    monkeypatch.chdir(tmp_path)
    words = [
        f"model.pretrained_model_name_or_path={tiny_model}",
        f"dataset.dataset_name={squad_folder}",
    ]
    with after_step(101, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        code = main(["run", str(EXAMPLE), *words])
    printed = capsys.readouterr().out
    assert code == 75, printed
    assert "LoRA of rank 8, alpha 32, on 14 modules" in printed
    assert "steps          1000 of 1 x 4 samples" in printed
    checkpoints = sorted(each.name for each in Path("checkpoints").glob("epoch_*"))
    assert [name.partition("_step_")[2] for name in checkpoints] == ["100", "101"]

    folder = Path("checkpoints") / "latest" / "model"
    saved = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].split(".")[-1] for name in saved} == LINEARS
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, folder)(ids).logits
    assert (after - before).abs().max() > 1e-3, "it has learned"
