"""The report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from automodel_core.data_report.documents import Row
from automodel_core.data_report.health import Share
from automodel_core.data_report.looking import Looked
from automodel_core.data_report.pieces import pieces_of

# Shades alternate, so that one token is told from the next.
STYLES = {
    "learned": ("bold black on green", "bold black on bright_green"),
    "context": ("", "dim"),
    "pad": ("black on bright_black",) * 2,
    "boundary": ("bold magenta",) * 2,
}
# Around what is learned, where there are no colours.
LEARNED = ("\u27e6", "\u27e7")
BAR = 30


def print_report(
    looked: Sequence[Looked], tokenizer: PreTrainedTokenizerBase, shown: int, console: Console
) -> None:
    """Samples as the model will see them, then what is wrong."""
    for each in looked:
        amount = "a stream" if each.samples is None else f"{each.samples:,} samples"
        console.print(f"\n{each.name}: {amount}", style="bold", markup=False)
        for note in each.notes:
            console.print(f"  {note}", markup=False)
        for number, row in enumerate(each.rows[:shown], start=1):
            console.print(f"\n  row {number}", style="bold", markup=False)
            text = row_text(row, tokenizer, coloured=console.color_system is not None)
            console.print(text, soft_wrap=True)
        print_health(each, console)
    legend = Text("\n  ")
    for role, (style, _) in STYLES.items():
        legend.append(role, style).append("  ")
    console.print(legend if console.color_system else f"\n  {LEARNED[0]}learned{LEARNED[1]}")


def row_text(row: Row, tokenizer: PreTrainedTokenizerBase, coloured: bool) -> Text:
    """A row with its tokens coloured by what they are for, or what is learned in brackets."""
    text, before = Text(), "context"
    for number, piece in enumerate(pieces_of(row, tokenizer)):
        if not coloured and "learned" in (before, piece.role) and before != piece.role:
            text.append(LEARNED[piece.role != "learned"])
        before = piece.role
        style = STYLES[piece.role][number % 2]
        if piece.role == "boundary":
            text.append("\n--- another document ---\n", style)
        elif piece.role == "pad":
            text.append(f" [{piece.text}] ", style)
        else:
            text.append(printable(piece.text), style)
    if not coloured and before == "learned":
        text.append(LEARNED[1])
    return text


def printable(text: str) -> str:
    """Text without what would steer a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def share_text(part: Share) -> str:
    """How much is learned."""
    return f"{part.supervised:,} of {part.tokens:,} tokens ({part.share:.1%})"


def print_health(looked: Looked, console: Console) -> None:
    """The figures and faults of one set."""
    health = looked.health
    ended, answers = health.ends
    real = health.tokens + health.pads
    facts = {
        "examined": f"{health.documents:,} samples in {health.rows:,} rows",
        "learned": share_text(health),
        **{f"- {name}": share_text(part) for name, part in health.sources.items()},
        "padding": f"{health.pads:,} tokens ({health.pads / real if real else 0:.1%} of the rows)",
        "end token": f"learned behind {ended:,} of {answers:,} answers",
    }
    console.print("\n  Health", style="bold")
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"  {name:<{width}} {value}", markup=False)
    most = max(health.lengths.values(), default=1)
    for name, count in health.lengths.items():
        bar = "#" * max(1, round(BAR * count / most))
        console.print(f"  {name + ' tokens':<18} {bar} {count:,}", markup=False, highlight=False)
    if not health.faults:
        console.print("  No fault found.")
    for fault in health.faults:
        style = "bold red" if fault.severity == "error" else "bold yellow"
        where = ", ".join(str(number + 1) for number in fault.documents)
        places = f" (such as sample {where} of those examined)" if where else ""
        console.print(f"  {fault.name}: {fault.count:,} {fault.of}", style=style, markup=False)
        console.print(f"      {fault.message}{places}", markup=False)
