"""Every YAML in examples/ validates, and runs two steps on the CPU with a tiny stand-in model."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from automodel_core.cli import main

EXAMPLES = sorted(Path("examples").glob("*.yaml"))

ROWS = [{"question": f"What is {n} plus one?", "answer": str(n + 1)} for n in range(40)]


@pytest.fixture
def stand_ins(tmp_path, tiny_model, squad_folder):
    """The overrides that replace an example's model, data and length by tiny ones."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def overrides(text: str) -> list[str]:
        if "image_conversations" in text:
            return vision_stand_ins(tmp_path)
        key, data = (
            ("path_or_dataset_id", rows)
            if "path_or_dataset_id" in text
            else ("dataset_name", squad_folder)
        )
        sections = ["dataset", "validation_dataset"]
        sections += ["generation_eval.dataset"] * ("generation_eval:" in text)
        return [
            f"model.pretrained_model_name_or_path={tiny_model}",
            f"checkpoint.checkpoint_dir={tmp_path / 'run'}",
            "step_scheduler.max_steps=2",
            "--unset",
            "step_scheduler.val_every_steps",
            "lr_scheduler.warmup_steps=1",
            *(f"{section}.{key}={data}" for section in sections),
        ]

    return overrides


def vision_stand_ins(folder: Path) -> list[str]:
    """The overrides for the example that sees; its model is tiny already."""
    script = Path("examples/vlm_quickstart/prepare.py")
    spec = importlib.util.spec_from_file_location("vlm_quickstart_prepare", script)
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    prepare.prepare_model(folder / "model", ["what color is it?", "red"])
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    row = prepare.conversation("what color is it?", "red", "red.png")
    prepare.write_jsonl(folder / "images.jsonl", [row] * 40)
    return [
        f"model.config={folder / 'model'}",
        f"dataset.path_or_dataset={folder / 'images.jsonl'}",
        f"checkpoint.checkpoint_dir={folder / 'run'}",
        "step_scheduler.max_steps=2",
        "lr_scheduler.warmup_steps=1",
        "dataloader.num_workers=0",
    ]


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_validates(path, capsys):
    assert main(["validate", str(path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_two_steps_with_tiny_stand_ins(path, stand_ins, tmp_path, capsys):
    code = main(["run", str(path), *stand_ins(path.read_text())])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert len((tmp_path / "run" / "training.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "latest" / "model" / "config.json").exists()
    assert "guard " not in printed.out
