"""Whole runs of models that see; transformers.Trainer, transformers and PEFT are the referees."""

import json
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModelForImageTextToText

from automodel_core.cli import main
from automodel_datasets.image_collate import image_text_collater
from automodel_datasets.image_conversations import make_image_conversations
from automodel_models.image_text import from_pretrained
from tests.trainer import SAME, losses_on
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
        config["dataloader"] = {**SAME["dataloader"], "collate_fn": "image_text"}
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
