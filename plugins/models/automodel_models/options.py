"""The options that every model builder takes, checked before anything is read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automodel_core.errors import UserError

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
FLASH_ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


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


def check_attention(implementation: str | None) -> None:
    """Refuse an attention that isn't installed.

    Raises:
        UserError: Its package is missing, it would be fetched from the Hub and run, or no such
            attention exists.
    """
    if implementation is None:
        return
    package = FLASH_ATTENTION.get(implementation)
    if package and find_spec(package) is None:
        raise UserError(
            f"{implementation} needs the package {package}, which isn't installed.",
            fix="write attn_implementation: sdpa, which needs no package and is nearly as fast",
            argument="attn_implementation",
        )
    if "/" in implementation:
        raise UserError(
            f"{implementation} is a kernel on the Hub: code that would be fetched and run.",
            fix="write attn_implementation: sdpa",
            argument="attn_implementation",
        )
    known = {"eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)}
    if implementation not in known:
        raise UserError(
            f"There is no attention called {implementation}.",
            fix=f"write one of {', '.join(sorted(known))}",
            argument="attn_implementation",
        )


def check_patches(use_liger_kernel: bool, use_sdpa_patching: bool) -> None:
    """Refuse, by name, what this version doesn't have.

    Raises:
        UserError: One of the two is asked for.
    """
    for name, asked in (
        ("use_liger_kernel", use_liger_kernel),
        ("use_sdpa_patching", use_sdpa_patching),
    ):
        if asked:
            raise UserError(
                f"{name} isn't available yet.", fix=f"write {name}: false", argument=name
            )
