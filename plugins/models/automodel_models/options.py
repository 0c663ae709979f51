"""The options that every model builder takes, checked before anything is read."""

from __future__ import annotations

from typing import Literal

import torch

from automodel_core.errors import UserError

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def read_dtype(text: str) -> torch.dtype | Literal["auto"]:
    """A dtype as the YAML writes it: `bfloat16`, `torch.bfloat16` or `auto`.

    Raises:
        UserError: It is none that a model trains in.
    """
    name = text.removeprefix("torch.")
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UserError(
            f"{text} is no dtype that a model trains in.",
            fix=f"write one of auto, {', '.join(DTYPES)}",
            argument="torch_dtype",
        )
    return DTYPES[name]
