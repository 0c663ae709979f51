"""Whole runs of models that see; transformers.Trainer, transformers and PEFT are the referees."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from automodel_core.cli import main
from automodel_core.processors import read_processor
from automodel_datasets.image_collate import image_text_collater
from automodel_datasets.image_conversations import make_image_conversations
from automodel_models.image_text import from_pretrained
from tests.trainer import SAME, losses_on
from tests.variants import mostly_slow
from tests.vision import tiny_vlm, write_conversations

STEPS = 30


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("conversations"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a family's tiny model, made once."""
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny_vlm(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def train(conversations, tmp_path_factory):
    """Run a model on the conversations; returns the run folder and the losses."""

    def run(model: Path, **sections) -> tuple[Path, list[float]]:
        folder = tmp_path_factory.mktemp("run")
        config = {
            "model": {"_target_": "image_text", "pretrained_model_name_or_path": str(model)},
            "dataset": {"_target_": "image_conversations", "path_or_dataset": str(conversations)},
            "checkpoint": {"checkpoint_dir": str(folder / "run")},
            **SAME,
            **sections,
        }
        loader = sections.get("dataloader", SAME["dataloader"])
        config["dataloader"] = {**loader, "collate_fn": "image_text"}
        config["optimizer"] = {"_target_": "adamw", **SAME["optimizer"]}
        with (folder / "config.yaml").open("w") as handle:
            YAML(typ="safe").dump(config, handle)
        assert main(["run", str(folder / "config.yaml"), "--nproc-per-node", "1"]) == 0
        lines = (
            (Path(config["checkpoint"]["checkpoint_dir"]) / "training.jsonl")
            .read_text()
            .splitlines()
        )
        return folder / "run", [json.loads(line)["loss"] for line in lines]

    return run


def referee_losses(model: Path, conversations: Path, scratch: Path) -> list[float]:
    processor = from_pretrained(str(model)).load_processor()

    def collate(rows):
        batch = image_text_collater(rows, processor)
        return {name: value for name, value in batch.items() if name != "position_ids"}

    plain = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    data = make_image_conversations(str(conversations))
    return losses_on(data, plain, collate, scratch, STEPS)


@pytest.mark.parametrize("name", ["gemma3", "qwen"])
def test_thirty_steps_follow_transformers_trainer(name, models, conversations, train, tmp_path):
    steps = {"step_scheduler": {**SAME["step_scheduler"], "max_steps": STEPS}}
    _, ours = train(
        models(name),
        **steps,
        checkpoint={"enabled": False, "checkpoint_dir": str(tmp_path / "run")},
    )
    theirs = referee_losses(models(name), conversations, tmp_path)
    assert len(ours) == STEPS
    left, right = (torch.tensor(losses, dtype=torch.float64) for losses in (ours, theirs))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=0)
    assert ours[-1] < ours[0] - 0.3, "it learns"


def test_documents_with_images_train_in_packed_rows(models, train):
    folder, losses = train(
        models("qwen"),
        packed_sequence={"packed_sequence_size": 160},
        step_scheduler={**SAME["step_scheduler"], "max_steps": 12},
    )
    assert losses[-1] < losses[0] - 0.1
    steps = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert all(0.6 < step["packing_efficiency"] <= 1 for step in steps)
    assert all(0 <= step["data_seconds"] <= step["seconds"] for step in steps)


@pytest.fixture(scope="module", params=mostly_slow(["gemma3", "qwen"], fast=["qwen"]))
def adapted(request, models, train) -> tuple[Path, Path]:
    """A base model, and a run that trained an adapter on every linear layer but the tower's."""
    folder, _ = train(
        models(request.param),
        peft={"_target_": "lora", "match_all_linear": True, "dim": 4, "alpha": 64},
        freeze_config={"freeze_vision_tower": True},
        step_scheduler={"max_steps": 8, "grad_acc_steps": 2},
    )
    return models(request.param), folder


ASKED = [{"type": "image", "image": "3.png"}, {"type": "text", "text": "What is 12?"}]
LONGEST = 6


def in_peft(base: Path, run: Path) -> PeftModel:
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, run / "latest" / "model").eval()


def inputs_of_transformers(folder: Path, conversations: Path) -> dict:
    """The prompt as a user of transformers makes it, with the saved processor."""
    processor = read_processor(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, ASKED[1]]}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    image = Image.open(conversations.parent / "3.png").convert("RGB")
    special = not text.startswith(processor.tokenizer.bos_token or " ")
    return dict(
        processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=special)
    )


@pytest.fixture(scope="module")
def answered(adapted, conversations) -> tuple[str, dict]:
    """What PEFT's model says to ASKED, and what it was called with."""
    base, run = adapted
    inputs = inputs_of_transformers(run / "latest" / "model", conversations)
    model = in_peft(base, run)
    out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    processor = read_processor(run / "latest" / "model")
    new = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), inputs


def test_rows_with_images_are_answered_as_by_peft(adapted, answered, conversations, tmp_path):
    rows = [{"messages": [{"role": "user", "content": ASKED}]}, {"prompt": "What is 12?"}]
    prompts = conversations.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "answers.jsonl"
    words = ["--prompts", str(prompts), "--out", str(out), "--max-new-tokens", str(LONGEST)]
    assert main(["generate", str(adapted[1]), *words]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["answer"] == answered[0]
    assert lines[0]["messages"] == rows[0]["messages"]
    assert lines[1]["prompt"] == "What is 12?"


def test_chat_shows_an_image_with_the_first_line(
    adapted, answered, conversations, monkeypatch, capsys
):
    typed = io.TextIOWrapper(io.BytesIO(b"What is 12?\nAnd 13?\n"), "utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    image = str(conversations.parent / "3.png")
    words = ["--image", image, "--max-new-tokens", str(LONGEST)]
    assert main(["chat", str(adapted[1] / "latest" / "model"), *words]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.strip() == answered[0]
    assert rest.strip(), "the image stays in the conversation"


@torch.no_grad()
def test_merged_it_opens_in_transformers_and_says_what_peft_says(adapted, answered, tmp_path):
    base, run = adapted
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    inputs = answered[1]
    theirs = in_peft(base, run)(**inputs).logits
    torch.testing.assert_close(merged(**inputs).logits, theirs, rtol=1e-4, atol=1e-4)
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    assert (plain(**inputs).logits - theirs).abs().max() > 0.01
    assert type(read_processor(tmp_path / "merged")) is type(read_processor(base))
    with (
        safe_open(base / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "merged" / "model.safetensors", "pt") as after,
    ):
        assert set(before.keys()) <= set(after.keys()), "named as its authors name them"


def test_a_model_of_text_is_shown_no_images(tiny_model, conversations, capsys):
    image = str(conversations.parent / "3.png")
    assert main(["chat", str(tiny_model), "--image", image]) == 2
    assert "image" in capsys.readouterr().err


def test_a_tokenizer_of_its_own_is_the_processors_and_is_saved_in_it(models, train, tmp_path):
    processor = read_processor(models("llava"))
    processor.tokenizer.chat_template = processor.chat_template + "{# mine #}"
    processor.tokenizer.save_pretrained(tmp_path)
    folder, _ = train(
        models("llava"),
        tokenizer={"pretrained_model_name_or_path": str(tmp_path)},
        step_scheduler={"max_steps": 1},
    )
    saved = read_processor(folder / "latest" / "model")
    assert saved.chat_template.endswith("{# mine #}")
    assert saved.image_token == "<image>"


def test_samples_of_like_lengths_stand_together_and_a_worker_reads_them(models, train):
    _, losses = train(
        models("llava"),
        dataloader={"batch_size": 2, "shuffle": True, "group_by_length": True, "num_workers": 1},
        step_scheduler={"max_steps": 2},
    )
    assert len(losses) == 2
