"""Tiny models that see, of six families, each with its processor: made offline in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Idefics3Config,
    LlavaConfig,
    LlavaNextConfig,
    PretrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
)

from tests.plugins.datasets.seeing import FAMILIES

WIDTH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def language(processor: ProcessorMixin, **more: Any) -> dict[str, Any]:
    """The keys of a language model of two narrow layers that every family has."""
    tokenizer = processor.tokenizer
    return {
        **WIDTH,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **more,
    }


def gemma3(processor: ProcessorMixin) -> PretrainedConfig:
    tokenizer = processor.tokenizer
    return Gemma3Config(
        text_config=language(processor, head_dim=16, sliding_window=64),
        vision_config={**WIDTH, "image_size": 28, "patch_size": 7},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )


def qwen(processor: ProcessorMixin) -> PretrainedConfig:
    token = processor.tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config=language(
            processor,
            rope_parameters={
                "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4
            },
        ),
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": 32, "patch_size": 4, "spatial_merge_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1], "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip


def clip() -> dict[str, Any]:
    return {**WIDTH, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}


def llava(processor: ProcessorMixin) -> PretrainedConfig:
    return LlavaConfig(
        text_config={"model_type": "llama", **language(processor)},
        vision_config=clip(),
        image_token_index=processor.tokenizer.image_token_id,
        tie_word_embeddings=False,
    )


def idefics3(processor: ProcessorMixin) -> PretrainedConfig:
    return Idefics3Config(
        text_config={"model_type": "llama", **language(processor)},
        vision_config={**WIDTH, "image_size": 28, "patch_size": 7},
        scale_factor=2,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=processor.tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def llava_next(processor: ProcessorMixin) -> PretrainedConfig:
    return LlavaNextConfig(
        text_config={"model_type": "mistral", **language(processor, head_dim=16)},
        vision_config=clip(),
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        image_token_index=processor.tokenizer.image_token_id,
        tie_word_embeddings=False,
    )


def pixtral(processor: ProcessorMixin) -> PretrainedConfig:
    return LlavaConfig(
        text_config={"model_type": "mistral", **language(processor, head_dim=16)},
        vision_config={
            **WIDTH, "model_type": "pixtral", "image_size": 28, "patch_size": 7, "head_dim": 16
        },
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip


CONFIGURATIONS = {
    "gemma3": gemma3,
    "qwen": qwen,
    "llava": llava,
    "idefics3": idefics3,
    "llava_next": llava_next,
    "pixtral": pixtral,
}


def tiny_configuration(name: str, folder: Path) -> ProcessorMixin:
    """Save a family's tiny configuration and processor to `folder`, no weights."""
    processor = FAMILIES[name][0]()
    processor.save_pretrained(folder)
    CONFIGURATIONS[name](processor).save_pretrained(folder)
    return processor


def tiny_vlm(name: str, folder: Path) -> Path:
    """Save a family's tiny model with random weights and its processor to `folder`."""
    processor = tiny_configuration(name, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(CONFIGURATIONS[name](processor))
    model.save_pretrained(folder)
    return folder


def picture(number: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """An image in two colours, a different one for each number."""
    image = Image.new("RGB", size, (37 * number % 256, 90, 200))
    image.paste((200, 61 * number % 256, 20), (0, 0, size[0] // 2, size[1] // 2))
    return image


def said(role: str, *parts: str | None) -> dict[str, Any]:
    """A message; None stands for an image."""
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return {"role": role, "content": content}


def write_conversations(folder: Path, rows: int = 8) -> Path:
    """Questions about images in files beside them, two images in every fourth row; a file of
    `{"messages": [...]}`."""
    lines = []
    for row in range(rows):
        names = [f"{row}.png", "0.png"] if row % 4 == 3 else [f"{row}.png"]
        picture(row, (60, 40) if row % 2 else (40, 60)).save(folder / names[0])
        parts: list[dict[str, str]] = [{"type": "image", "image": name} for name in names]
        parts.append({"type": "text", "text": f"What is {row} plus one?"})
        said = "The sum is 13." if row % 3 else "A city by the sea."
        answer = {"role": "assistant", "content": said}
        lines.append(json.dumps({"messages": [{"role": "user", "content": parts}, answer]}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
