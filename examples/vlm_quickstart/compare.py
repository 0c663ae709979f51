"""Whether the model of examples/vlm_quickstart.yaml looks at its images.

    python examples/vlm_quickstart/compare.py [KEY=VALUE ...]

trains it twice, the second time with a blank image in place of every drawing, and asks both about
drawings that neither has seen. Words after the command change the configuration of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

EXAMPLE = Path(__file__).parents[1] / "vlm_quickstart.yaml"


def train(data: Path, runs: Path, name: str, train_file: str, words: list[str]) -> Path:
    """Run the example on one of the training files; returns the trained model's folder."""
    run = runs / name
    settings = [
        f"model.config={data / 'model'}",
        f"dataset.path_or_dataset={data / train_file}",
        f"checkpoint.checkpoint_dir={run}",
    ]
    subprocess.run(["automodel", "run", str(EXAMPLE), *settings, *words, "--fresh"], check=True)
    return run / "latest" / "model"


@torch.no_grad()
def accuracy(model_folder: Path, test_file: Path, batch_size: int = 50) -> float:
    """The share of questions that plain transformers answers right with the trained model."""
    model = LlavaForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = AutoProcessor.from_pretrained(model_folder)
    processor.tokenizer.padding_side = "left"
    rows = [json.loads(line) for line in test_file.read_text(encoding="utf-8").splitlines()]
    right = 0
    for start in range(0, len(rows), batch_size):
        asked = [row["messages"] for row in rows[start : start + batch_size]]
        written = model.generate(
            **as_inputs(processor, asked, test_file.parent), max_new_tokens=2, do_sample=False
        )
        answers = processor.batch_decode(written[:, -2:], skip_special_tokens=True)
        right += sum(
            answer.strip() == messages[1]["content"]
            for answer, messages in zip(answers, asked, strict=True)
        )
    return right / len(rows)


def as_inputs(processor: Any, asked: list[list[dict[str, Any]]], folder: Path) -> Any:
    """One question about one image each, as the model takes them."""
    texts = [
        processor.apply_chat_template(messages[:1], add_generation_prompt=True)
        for messages in asked
    ]
    images = [
        [Image.open(folder / messages[0]["content"][0]["image"]).convert("RGB")]
        for messages in asked
    ]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(".cache/vlm_quickstart"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given, words = parser.parse_known_args(arguments)
    figures = {}
    for name, suffix in (("vlm_quickstart", ""), ("vlm_quickstart_blank", "_blank")):
        trained = train(given.data, given.runs, name, f"train{suffix}.jsonl", words)
        figures[name] = accuracy(trained, given.data / f"test{suffix}.jsonl")
    print("\nQuestions about drawings not seen in training, answered right")
    print(f"  trained and asked with the images    {figures['vlm_quickstart']:.1%}")
    print(f"  trained and asked with blank images  {figures['vlm_quickstart_blank']:.1%}")


if __name__ == "__main__":
    sys.exit(main())
