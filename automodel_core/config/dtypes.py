"""Names of dtypes, read without torch."""

from __future__ import annotations

from automodel_core.wording import did_you_mean

DTYPES = ("auto", "bfloat16", "float16", "float32")


def read_dtype(text: str) -> tuple[str | None, str]:
    """`torch.bfloat16` or `bfloat16` -> "bfloat16".

    Returns:
        The name and "", or None and what to write instead.
    """
    name = text.removeprefix("torch.")
    if name in DTYPES:
        return name, ""
    return None, f"{did_you_mean(name, DTYPES)} One of: {', '.join(DTYPES)}".strip()
