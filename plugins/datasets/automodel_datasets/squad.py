"""Questions about a context, in the columns of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

from collections.abc import Iterator

from automodel_core.errors import UserError
from automodel_datasets.authoring import questions
from automodel_datasets.building import Placed, placed
from automodel_datasets.question_answer import Example, write_prompt
from automodel_datasets.rows import Row, required_text, text_of
from automodel_datasets.sources import load_rows_or_errors


@questions
def make_squad_dataset(
    dataset_name: str = "rajpurkar/squad",
    split: str = "train",
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[Example] | UserError]:
    """SQuAD, or any data with its columns `context`, `question` and `answers`.

    With a chat template, context and question are the user's message and the first answer is the
    assistant's. Without one, a sample reads `Context: ... Question: ... Answer: ...` and ends with
    EOS. The answer and what ends it are supervised. Questions without an answer are left out. The
    context is cut to keep within max_length, never the answer.

    Args:
        dataset_name: A dataset on the Hub, a local folder, or a JSONL, JSON, CSV or Parquet file.
        split: Such as train, train[:1000] or train[10%:20%].
        limit_dataset_samples: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had or a row is broken.
    """
    rows = load_rows_or_errors(
        dataset_name,
        split,
        argument="dataset_name",
        limit=limit_dataset_samples,
        streaming=streaming,
    )
    yield from placed(rows, squad_example)


make_squad_dataset.write_prompt = write_prompt  # see `Dataset` in the core's protocols


def squad_example(row: Row) -> Example:
    """A row's context, question and first answer; no answer as in SQuAD 2.0 is an empty one."""
    return Example(
        context=text_of(row, "context"),
        question=required_text(row, "question"),
        answer=first_answer(row),
    )


def first_answer(row: Row) -> str:
    """The first of `answers["text"]`, stripped.

    Raises:
        UserError: The column is missing or isn't made as SQuAD's.
    """
    if "answers" not in row.values:
        text_of(row, "answers")  # says which columns there are
    answers = row.values["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f'{row.place}: `answers` is not of the form {{"text": ["..."], "answer_start": [0]}}.',
            fix="for a plain column of answers use the `instructions` dataset",
        )
    return texts[0].strip() if texts else ""
