"""The reference's complete example of a model that sees, as it stands but for model and data."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration

from automodel_core.cli import main
from tests.plugins.datasets.seeing import gemma3
from tests.same_run import after_step

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "reference" / "complete_vlm_freezing.yaml"


@pytest.fixture
def tiny_gemma3(tmp_path) -> Path:
    """A Gemma 3 of two narrow layers each, with its processor."""
    processor, folder = gemma3(), tmp_path / "gemma3"
    tokenizer = processor.tokenizer
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sliding_window": 64,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def medpix(tmp_path) -> Path:
    """40 images with the columns of MedPix-VQA, as `datasets` saves them."""

    def png(shade: int) -> bytes:
        held = io.BytesIO()
        Image.new("RGB", (40, 30), (shade * 6, 80, 120)).save(held, "PNG")
        return held.getvalue()

    rows = datasets.Dataset.from_dict(
        {
            "image_id": [{"bytes": png(i), "path": None} for i in range(40)],
            "question": ["What is one plus 12?"] * 40,
            "answer": ["The sum is 13." if i % 2 else "A city by the sea." for i in range(40)],
        }
    )
    rows.cast_column("image_id", datasets.Image()).save_to_disk(tmp_path / "medpix")
    return tmp_path / "medpix"


def test_it_trains_all_but_what_it_freezes_and_opens_in_transformers(
    tiny_gemma3, medpix, tmp_path, monkeypatch, capsys
):
    """A signal ends it after a few of its 500 steps."""
    monkeypatch.chdir(tmp_path)
    words = [
        f"model.pretrained_model_name_or_path={tiny_gemma3}",
        f"dataset.path_or_dataset={medpix}",
    ]
    with after_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        code = main(["run", str(EXAMPLE), *words])
    assert code == 75, capsys.readouterr()
    folder = Path("checkpoints") / "latest" / "model"
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "Gemma3Processor"
    Gemma3ForConditionalGeneration.from_pretrained(folder)
    before, after = (load_file(each / "model.safetensors") for each in (tiny_gemma3, folder))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {n for n, each in after.items() if not torch.equal(each, before[n].bfloat16())}
    assert any("layers" in name for name in changed)
    assert not [name for name in changed if "vision_tower" in name or "embed_tokens" in name]
