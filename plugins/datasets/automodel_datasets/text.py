"""Plain text, for continued pretraining: all of it is learned."""

from __future__ import annotations

from collections.abc import Iterator

from automodel_core.errors import UserError
from automodel_datasets.authoring import texts
from automodel_datasets.building import Placed, placed
from automodel_datasets.rows import unstripped_text
from automodel_datasets.sources import load_rows_or_errors


@texts
def make_text_dataset(
    path_or_dataset_id: str | list[str],
    column: str = "text",
    split: str = "train",
    name: str | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[str] | UserError]:
    """One document a row, every token learned, EOS at the end.

    A document that is too long goes on in the next sample; nothing of it is lost.

    Args:
        path_or_dataset_id: A file, a list of files, a glob such as data/*.jsonl, a folder, or a
            dataset on the Hub.
        column: Which column holds the text.
        split: Such as train, train[:1000] or train[10%:20%]. Files without a folder are all train.
        name: The configuration of a Hub dataset that has several.
        limit_dataset_samples: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had, the column is missing or a row is broken.
    """
    rows = load_rows_or_errors(
        path_or_dataset_id,
        split,
        argument="path_or_dataset_id",
        limit=limit_dataset_samples,
        name=name,
        streaming=streaming,
    )
    yield from placed(rows, lambda row: unstripped_text(row, column, "column"))
