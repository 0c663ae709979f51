"""Instructions with answers, from columns of any names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from automodel_core.errors import UserError
from automodel_datasets.authoring import questions
from automodel_datasets.building import Placed, placed
from automodel_datasets.question_answer import Example, write_prompt
from automodel_datasets.rows import Row, required_text, text_of
from automodel_datasets.sources import load_rows_or_errors

ROLES = ("context", "question", "answer")


@questions
def make_instruction_dataset(
    path_or_dataset_id: str | list[str],
    column_mapping: dict[str, str],
    split: str = "train",
    name: str | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[Example] | UserError]:
    """Questions and answers from JSONL, JSON, CSV or Parquet files, folders of them, or the Hub.

    Samples are formatted and supervised as `make_squad_dataset` does it. Every question and answer
    must be text and not empty; a context may be empty or null, and is cut to keep within
    max_length.

    Args:
        path_or_dataset_id: A file, a list of files, a folder, or a dataset on the Hub.
        column_mapping: Which columns hold the `context`, the `question` and the `answer`; context
            or question may be left out.
        split: Such as train, train[:1000] or train[10%:20%]. Files without a folder are all train.
        name: The configuration of a Hub dataset that has several.
        limit_dataset_samples: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had, a column is missing or a row is broken.
    """
    check_mapping(column_mapping)
    rows = load_rows_or_errors(
        path_or_dataset_id,
        split,
        argument="path_or_dataset_id",
        limit=limit_dataset_samples,
        name=name,
        streaming=streaming,
    )
    yield from placed(rows, lambda row: mapped_example(row, column_mapping))


make_instruction_dataset.write_prompt = write_prompt  # see `Dataset` in the core's protocols


def check_mapping(column_mapping: Mapping[str, str]) -> None:
    """An answer, and something to answer.

    Raises:
        UserError: The mapping names something else, or too little.
    """
    unknown = [role for role in column_mapping if role not in ROLES]
    if unknown or "answer" not in column_mapping or len(column_mapping) < 2:
        raise UserError(
            f"column_mapping has no place for `{unknown[0]}`."
            if unknown
            else "column_mapping needs `answer`, and `question` or `context`.",
            fix="write column_mapping: {question: COLUMN, answer: COLUMN}, "
            "with context: COLUMN if there is one",
            argument="column_mapping",
        )


def mapped_example(row: Row, column_mapping: Mapping[str, str]) -> Example:
    """A row's texts by role; only a context beside a question may be empty.

    Raises:
        UserError: A column is missing, or holds something else than text.
    """
    optional = {"context"} if "question" in column_mapping else set()
    texts = {
        role: (text_of if role in optional else required_text)(row, column, "column_mapping")
        for role, column in column_mapping.items()
    }
    return Example(texts.get("context", ""), texts.get("question", ""), texts["answer"])
