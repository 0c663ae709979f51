"""Beginnings with four endings, one of them right (Zellers et al. 2019, arXiv:1905.07830)."""

from __future__ import annotations

from collections.abc import Iterator

from automodel_core.errors import UserError
from automodel_datasets.authoring import texts
from automodel_datasets.building import Placed, placed
from automodel_datasets.rows import Row, required_text, value_of
from automodel_datasets.sources import load_rows_or_errors
from automodel_datasets.writing import Completion


@texts
def make_hellaswag_dataset(
    path_or_dataset: str,
    split: str = "train",
    num_samples_limit: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[Completion] | UserError]:
    """HellaSwag, or any data with its columns `ctx`, `endings` and `label`.

    A sample is the beginning and its right ending as plain text. The ending and the EOS behind it
    are learned. A row that is too long is left out and counted.

    Args:
        path_or_dataset: `rowan/hellaswag` on the Hub, or local files or a folder.
        split: Such as train, train[:1000] or train[10%:20%]. The set's own `test`
            has no labels.
        num_samples_limit: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had, a column is missing or a row is broken.
    """
    rows = load_rows_or_errors(
        path_or_dataset,
        split,
        argument="path_or_dataset",
        limit=num_samples_limit,
        limit_argument="num_samples_limit",
        streaming=streaming,
    )
    yield from placed(rows, right_ending)


def right_ending(row: Row) -> Completion:
    """The beginning and the ending that `label` counts out; the Hub has it as text, "3".

    Raises:
        UserError: A column is missing, or the label is no ending's number.
    """
    endings, label = value_of(row, "endings"), value_of(row, "label")
    number = int(label) if str(label).isdecimal() else -1
    if not isinstance(endings, list) or not 0 <= number < len(endings):
        raise UserError(
            f"{row.place}: `label` is {label!r:.40}, which is no number of one of its `endings`.",
            fix="use a split that has labels" if label == "" else "count from 0",
        )
    ending = endings[number]
    if not isinstance(ending, str) or not ending.strip():
        raise UserError(f"{row.place}: the right ending is no text but {ending!r:.60}.")
    return Completion(required_text(row, "ctx"), " " + ending.strip())
