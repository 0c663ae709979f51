"""The report as data, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from transformers import PreTrainedTokenizerBase

from automodel_core.data_report.looking import Looked
from automodel_core.data_report.pieces import pieces_of


def as_data(
    looked: Sequence[Looked], tokenizer: PreTrainedTokenizerBase, shown: int
) -> dict[str, Any]:
    """Each data set by the key of its section: its health, its notes, and the first rows."""
    return {
        each.name: {
            "samples": each.samples,
            "notes": list(each.notes),
            **attrs.asdict(each.health),
            "supervised_share": each.health.share,
            "sources": {
                name: {**attrs.asdict(part), "supervised_share": part.share}
                for name, part in each.health.sources.items()
            },
            "shown": [
                [attrs.asdict(piece) for piece in pieces_of(row, tokenizer)]
                for row in each.rows[:shown]
            ],
        }
        for each in looked
    }
