"""What the adapter_config.json of a folder that PEFT wrote says, as far as the core needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from automodel_core.config.schema import Target
from automodel_core.errors import UserError

CONFIG = "adapter_config.json"

# In PEFT's adapter_config.json -> the registered name of what computes the same.
VARIANTS = {"use_dora": "dora", "use_rslora": "rslora"}


def base_of_adapter(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base model that it gives.

    Raises:
        UserError: It gives none.
    """
    written = _read(folder)
    name, revision = written.get("base_model_name_or_path"), written.get("revision")
    if isinstance(name, str) and name:
        return name, revision if isinstance(revision, str) else None
    raise UserError(
        f"{folder} doesn't say which model it was trained on.",
        fix=f"write it behind base_model_name_or_path in its {CONFIG}, "
        "or merge it with automodel merge --base",
    )


def peft_target(folder: Path) -> Target:
    """What a `peft:` section would say to go on from it.

    Raises:
        UserError: It can't be read.
    """
    written = _read(folder)
    name = next((each for key, each in VARIANTS.items() if written.get(key)), "lora")
    return Target(name, "peft", {"adapter_path": str(folder)}, ("peft",))


def _read(folder: Path) -> dict[str, Any]:
    try:
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        written = None
    if not isinstance(written, dict):
        raise UserError(f"{folder} has no readable {CONFIG}.")
    return written
