"""Receipts and what stands on them, in the columns of CORD v2, written as Donut writes them
(Kim et al. 2022, arXiv:2111.15664)."""

from __future__ import annotations

import json
from typing import Any

from automodel_core.errors import UserError
from automodel_datasets.image_conversations import ImageConversations, describe, image_questions
from automodel_datasets.rows import Row, required_text


def make_cord_v2_dataset(
    path_or_dataset: str = "naver-clova-ix/cord-v2", split: str = "train"
) -> ImageConversations:
    """CORD v2, or any data with its columns `image` and `ground_truth`.

    Args:
        path_or_dataset: A dataset on the Hub, a local folder or a data file.
        split: Such as train or train[:1000].

    Raises:
        UserError: The data can't be had or a row is broken.
    """
    return image_questions(path_or_dataset, split, "image", describe, receipt)


def receipt(row: Row) -> str:
    """The receipt as text; the first reading where there are several.

    Raises:
        UserError: `ground_truth` isn't the JSON that CORD has there.
    """
    try:
        truth = json.loads(required_text(row, "ground_truth"))
        return as_text(truth["gt_parses"][0] if "gt_parses" in truth else truth["gt_parse"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(
            f'{row.place}: `ground_truth` is not JSON of the form {{"gt_parse": ...}}.'
        ) from None


def as_text(value: Any) -> str:
    """A tree with its keys as tags, in descending order; `<sep/>` between the items of lists."""
    if isinstance(value, dict):
        if set(value) == {"text_sequence"}:
            return str(value["text_sequence"])
        return "".join(
            f"<s_{key}>{as_text(value[key])}</s_{key}>" for key in sorted(value, reverse=True)
        )
    if isinstance(value, list):
        return "<sep/>".join(map(as_text, value))
    return str(value)
