"""Data that is tokenised already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from automodel_core.errors import UserError
from automodel_datasets import authoring
from automodel_datasets.building import Placed, placed
from automodel_datasets.rows import Row, json_of
from automodel_datasets.sources import load_rows_or_errors


@authoring.tokens
def make_token_dataset(
    path_or_dataset_id: str | list[str],
    input_ids: str = "input_ids",
    labels: str | None = None,
    split: str = "train",
    name: str | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[dict[str, Any]] | UserError]:
    """One list of tokens a row, taken as it is.

    Labels are aligned with the tokens and -100 where nothing is learned; without them everything
    is. What is too long goes on in the next sample, or is left out and counted if labels mask some
    of it.

    Args:
        path_or_dataset_id: A file, a list of files, a glob such as data/*.parquet, a folder, or a
            dataset on the Hub.
        input_ids: Which column holds the tokens.
        labels: Which column holds the labels; by default `labels`, if there is one.
        split: Such as train, train[:1000] or train[10%:20%]. Files without a folder are all train.
        name: The configuration of a Hub dataset that has several.
        limit_dataset_samples: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had, a column is missing or a row is broken.
    """
    rows = load_rows_or_errors(
        path_or_dataset_id,
        split,
        argument="path_or_dataset_id",
        limit=limit_dataset_samples,
        name=name,
        streaming=streaming,
    )

    def tokens(row: Row) -> dict[str, Any]:
        found = {"input_ids": json_of(row, input_ids, "input_ids")}
        if labels or "labels" in row.values:
            found["labels"] = json_of(row, labels or "labels", "labels")
        return found

    yield from placed(rows, tokens)
