"""What the doctor found, as people read it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from automodel_core.doctor.facts import Facts

if TYPE_CHECKING:  # checks need transformers, whose import takes seconds
    from automodel_core.doctor.checks import Check


def facts_as_text(found: Facts) -> str:
    """A block for each section; a value of several lines goes on below its first."""
    return "\n".join(line for title, rows in found.items() for line in block(title, rows))


def block(title: str, rows: dict[str, str]) -> list[str]:
    wide = max(map(len, rows), default=0)
    indent = " " * (wide + 4)
    lines = [title]
    for name, value in rows.items():
        first, *others = value.splitlines() or [""]
        lines.append(f"  {name:<{wide}}  {first}".rstrip())
        lines += [f"{indent}{each}".rstrip() for each in others]
    return lines


def check_as_text(check: Check) -> str:
    """One line, and below it what to do."""
    where = f"on rank {check.rank}: " if check.rank is not None else ""
    line = f"  {check.state:<6}  {check.name:<10}  {where}{check.message}"
    return f"{line}\n{textwrap.indent(check.fix, ' ' * 22)}" if check.fix else line
