"""Prepares the vision quickstart: questions about images and a small LLaVA to be trained on them.

    python examples/vlm_quickstart/prepare.py [--out .cache/vlm_quickstart]

leaves this behind:

    model/            configuration, tokenizer and processor of a LLaVA of about half a million
                      parameters; no weights, for it is trained from nothing
    images/           drawings of 64 x 64 pixels, and one that is blank
    train.jsonl       {"messages": [...]} on each line: a question about an image, and its answer
    test.jsonl        about other images
    train_blank.jsonl, test_blank.jsonl  the same, with the blank image everywhere

Only questions after a color or a shape are kept: two thirds of all, most of them of yes and no, are
answered right by who knows the question's usual answer and has never seen an image.

Questions and images come from the package easy-vqa by Victor Zhou (MIT).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

# This class needs Pillow alone; older versions of transformers have it under the plain name.
try:
    from transformers import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

PIXELS, PATCH = 64, 8
SPECIAL = ("<pad>", "<unk>", "<image>", "<user>", "<assistant>", "<end>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEST_QUESTIONS = 1000

# A question, its answer and the number of its image.
Question = tuple[str, str, int]


def questions(data: Path, split: str) -> list[Question]:
    """What is asked about a split's images, but for yes and no."""
    asked = json.loads((data / split / "questions.json").read_text())
    return [tuple(each) for each in asked if each[1] not in ("yes", "no")]


def prepare_model(folder: Path, texts: Iterable[str]) -> None:
    """Write configuration, tokenizer and processor; a word is a token."""
    words = sorted({word for text in texts for word in text.replace("?", " ?").split()})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens={
            "image_token": "<image>",
            "user_token": "<user>",
            "assistant_token": "<assistant>",
        },
        chat_template=TEMPLATE,
    )
    processor = LlavaProcessor(
        image_processor=ImageProcessor(
            size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    configuration(tokenizer, len(vocabulary)).save_pretrained(folder)


def configuration(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> LlavaConfig:
    """A vision transformer and a Llama, each of few and narrow layers."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=PIXELS,
            patch_size=PATCH,
            hidden_act="gelu",
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def conversation(question: str, answer: str, image: str) -> dict[str, Any]:
    """A question about an image, and its answer."""
    asked = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    }


def prepare_data(data: Path, out: Path) -> dict[str, int]:
    """Write the images and the four files; returns the number of rows of each split."""
    images = out / "images"
    for split in ("train", "test"):
        shutil.copytree(data / split / "images", images / split, dirs_exist_ok=True)
    Image.new("RGB", (PIXELS, PIXELS), "white").save(images / "blank.png")
    splits = {
        "train": questions(data, "train"),
        "test": random.Random(0).sample(questions(data, "test"), TEST_QUESTIONS),
    }
    for split, rows in splits.items():
        seen = [conversation(q, a, f"images/{split}/{number}.png") for q, a, number in rows]
        blank = [conversation(q, a, "images/blank.png") for q, a, _ in rows]
        write_jsonl(out / f"{split}.jsonl", seen)
        write_jsonl(out / f"{split}_blank.jsonl", blank)
    return {split: len(rows) for split, rows in splits.items()}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write aside and rename, so that nobody reads half a file."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(path)


def package_data() -> Path:
    """The data of easy-vqa, found without importing the package."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise SystemExit("The package easy-vqa is missing: python -m pip install easy-vqa")
    return Path(spec.origin).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".cache/vlm_quickstart"),
        help="folder for the model and the data (default: %(default)s)",
    )
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    data = package_data()
    known = [each for split in ("train", "test") for each in questions(data, split)]
    prepare_model(out / "model", (text for each in known for text in each[:2]))
    sizes = prepare_data(data, out)
    print(f"model  {out / 'model'}: a configuration, without weights")
    print(
        f"data   {out}: {sizes['train']} questions to train on, {sizes['test']} questions to test"
    )
    print("Licence: easy-vqa MIT (Victor Zhou).")


if __name__ == "__main__":
    main()
