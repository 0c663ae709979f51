"""The two things that messages and listings take from a docstring: its first sentence, and what it
says about each argument (Google style, as PyTorch and this project write it)."""

from __future__ import annotations

import inspect
import re

ARGUMENT = re.compile(r"(?P<indent> +)\*{0,2}(?P<name>\w+)(?: ?\([^)]*\))?: ?(?P<text>.*)")


def summary(docstring: str | None) -> str:
    """The first paragraph on one line; "" if there is none."""
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def first_sentence(text: str) -> str:
    """A text up to its first full stop, for hints."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def argument_docs(docstring: str | None) -> dict[str, str]:
    """What the `Args:` section says about each argument, each on one line."""
    lines = iter(inspect.cleandoc(docstring or "").splitlines())
    for line in lines:
        if line.strip() in ("Args:", "Arguments:", "Parameters:"):
            break
    docs: dict[str, str] = {}
    name, depth = "", None
    for line in lines:
        if line.strip() and not line.startswith(" "):
            break
        match = ARGUMENT.fullmatch(line)
        if match and (depth is None or len(match["indent"]) <= depth):
            name, depth = match["name"], len(match["indent"])
            docs[name] = match["text"]
        elif name:
            docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs


def without_arguments(docstring: str | None) -> str:
    """The prose of a docstring, up to its `Args:` section or the first Sphinx directive."""
    text = inspect.cleandoc(docstring or "")
    return re.split(r"\n(?:(?:Args|Arguments|Parameters):\n|\.\. )", f"\n{text}\n")[0].strip()
