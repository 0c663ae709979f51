"""What was raced in `race.py`, what came of it, and the report."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import attrs

OURS = "automodel"


@attrs.frozen
class Column:
    """A shape and a kind of tuning.

    Attributes:
        groups: Who is on the GPU together; ours is in each, for it is what others are compared to.
        batch: Rows of a step.
        documents: Of a step, where rows are documents of many lengths for those who don't pack.
        shortest: Documents of packed rows have at least so many tokens.
        steps: Timed in each round, where that must be more than usual.
    """

    shape: str
    kind: str
    batch: int
    groups: tuple[tuple[str, ...], ...]
    length: int = 4096
    shortest: int = 0
    documents: int = 0
    steps: int = 0


@attrs.define
class Found:
    """Of one contestant in one column.

    Attributes:
        seconds: Of each timed step.
        learned: Tokens that each timed step's loss was the mean of.
        losses: Of each step, from the first of the warm-up.
        warm_up: Seconds from the start of its process to the end of its warm-up.
    """

    seconds: list[float] = attrs.field(factory=list)
    rounds: list[float] = attrs.field(factory=list)
    learned: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    peak_gib: float = 0.0
    warm_up: float = 0.0
    failed: str = ""
    profile: dict[str, Any] | None = None

    def add(self, told: dict[str, Any], skip: int) -> None:
        """What a turn gave, without its first `skip` steps."""
        timed = told["seconds"][skip:]
        self.seconds += timed
        self.learned += told["learned"][skip:]
        self.rounds.append(statistics.median(timed))
        self.losses += told["losses"]
        self.peak_gib = max(self.peak_gib, told["peak_gib"])
        self.profile = told.get("profile", self.profile)

    @property
    def learned_per_second(self) -> float:
        return sum(self.learned) / sum(self.seconds)


@attrs.frozen
class Work:
    """What a column's file of rows holds, per learned token: the yardstick where steps differ.

    Attributes:
        tokens: All, learned or not.
        flops: Model FLOPs; see `automodel_core.bench.flops`.
    """

    tokens: float
    flops: float

    @classmethod
    def of(cls, column: Column, folder: Path, rows: str) -> Work:
        """Counted.

        Args:
            column: Its shape's model is in `folder`.
            folder: Of models.
            rows: A file as `race_rows` writes it.
        """
        import torch
        from race_contestants import RANK, TARGETS
        from race_rows import IGNORED, lengths_of
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM

        from automodel_core.bench.flops import StepFlops

        config = AutoConfig.from_pretrained(folder / column.shape)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if column.kind == "lora":
            model.requires_grad_(False)
            for layer in model.model.layers:
                for name in TARGETS:
                    base = getattr(layer.self_attn, name)
                    base.down = torch.nn.Parameter(base.weight.new_empty(RANK, base.in_features))
                    base.up = torch.nn.Parameter(base.weight.new_empty(base.out_features, RANK))
        stored = load_file(rows)
        learned = int((stored["labels"] != IGNORED).sum())
        total = StepFlops.of(model).step(lengths_of(stored["positions"]))
        return cls(stored["labels"].numel() / learned, total / learned)


def largest_difference(one: list[float], other: list[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=False)), default=float("nan"))


def table(name: str, column: Column, found: dict[str, Found], work: Work) -> list[dict[str, Any]]:
    """Rows of the report. Where all steps are the same work, rates go by the median step; ragged
    documents are compared by what is learned in all timed steps."""
    import torch

    from automodel_core.bench.flops import peak_of

    peak = peak_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    ours, rows = found.get(OURS, Found()), []
    ragged = column.documents > 0
    for contestant, each in found.items():
        row = {"column": name, "contestant": contestant, **attrs.asdict(each)}
        if each.seconds:
            seconds = statistics.median(each.seconds)
            tokens = column.batch * column.length / seconds
            ratio = seconds / statistics.median(ours.seconds) if ours.seconds else None
            if ragged:
                tokens = each.learned_per_second * work.tokens
                ratio = ours.seconds and ours.learned_per_second / each.learned_per_second
            row |= {
                "tokens_per_second": tokens,
                "learned_per_second": each.learned_per_second,
                "mfu": tokens / work.tokens * work.flops / peak if peak else None,
                "ours_to_it": ratio or None,
                "loss": statistics.mean(each.losses),
                # Ragged documents are in other steps for each.
                "loss_difference": abs(statistics.mean(each.losses) - statistics.mean(ours.losses))
                if ragged and ours.losses
                else largest_difference(each.losses, ours.losses),
            }
        rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    from automodel_core.bench.flops import CONVENTION

    lines = [
        "| column | | tokens/s | learned tokens/s | rounds, ms | peak GiB | MFU | ours to it "
        "| mean loss | largest difference to ours | warm-up s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['column']} | {row['contestant']} | "
        reason = (row["failed"] or "not raced").replace("|", "\\|")
        if "tokens_per_second" not in row:
            lines.append(f"{head}failed: {reason} | | | | | | | | |")
            continue
        rounds = " ".join(f"{each * 1000:.1f}" for each in row["rounds"])
        mfu = f"{row['mfu']:.3f}" if row["mfu"] else ""
        ratio = f"{row['ours_to_it']:.3f}" if row["ours_to_it"] else ""
        ended = f" (then failed: {reason})" if row["failed"] else ""
        lines.append(
            f"{head}{row['tokens_per_second']:,.0f} | {row['learned_per_second']:,.0f} "
            f"| {rounds}{ended} | {row['peak_gib']:.2f} | {mfu} | {ratio} | {row['loss']:.4f} "
            f"| {row['loss_difference']:.4f} | {row['warm_up']:.0f} |"
        )
    for row in rows:
        lines += profile_lines(row)
    versions = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([*lines, "", f"MFU: {CONVENTION}, of the device's bfloat16 peak.", versions])


def profile_lines(row: dict[str, Any]) -> list[str]:
    """Where a contestant's time went, if that was looked at."""
    profile = row["profile"]
    if not profile or not profile["span"]:
        return []
    return [
        "",
        f"{row['column']}, {row['contestant']}: device idle {profile['idle']:.1%} of "
        f"{profile['span'] * 1000:.1f} ms; longest kernels, ms and calls:",
        "",
        *(f"    {spent * 1000:8.2f} {calls:6} {name}" for name, spent, calls in profile["kernels"]),
    ]


def write(out: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """`race.json` and `race.md`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "race.json").write_text(json.dumps({"environment": about, "rows": rows}, indent=1))
    (out / "race.md").write_text(as_markdown(rows, about) + "\n")
