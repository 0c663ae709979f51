"""The files beside a model's weights: tokenizer, template, generation settings, processor."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "spiece*", "*.model", "*.tiktoken", "tekken.json", "chat_template*",
    "additional_chat_templates", "*.jinja",
)  # fmt: skip
GENERATION = ("generation_config.json",)
PROCESSOR = ("*processor_config.json",)


def copy_companions(target: Path, *folders: Path) -> None:
    """Copy tokenizer, generation settings and processor, each from the first folder with one."""
    for patterns in (TOKENIZER, GENERATION, PROCESSOR):
        for folder in folders:
            found = {path for pattern in patterns for path in folder.glob(pattern)}
            for path in found:
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, target / path.name)
            if found:
                break
