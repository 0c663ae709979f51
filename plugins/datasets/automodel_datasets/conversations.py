"""Chat data: OpenAI's `messages` with their tools, or ShareGPT's `conversations`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from automodel_core.errors import UserError
from automodel_datasets import authoring
from automodel_datasets.building import Placed, placed
from automodel_datasets.messages import Conversation
from automodel_datasets.rows import Row, json_of
from automodel_datasets.sources import load_rows_or_errors

# The columns that hold the messages where `column_mapping` says nothing, in this order.
USUAL = ("messages", "conversations")


@authoring.conversations
def make_chat_dataset(
    path_or_dataset_id: str | list[str],
    column_mapping: dict[str, str] | None = None,
    split: str = "train",
    name: str | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> Iterator[Placed[Conversation] | UserError]:
    """Conversations from JSONL, JSON, CSV or Parquet files, folders and globs of them, or the Hub.

    Messages are OpenAI's (`role`, `content`, `tool_calls`, `reasoning_content`) or ShareGPT's
    (`from`, `value`). In a CSV file, or wherever it suits, messages and tools may be JSON in a
    string. A conversation that is too long is left out and counted.

    Args:
        path_or_dataset_id: A file, a list of files, a glob such as data/*.jsonl, a folder, or a
            dataset on the Hub.
        column_mapping: Which columns hold the `messages` and the `tools`; by default `messages`,
            else `conversations`, and `tools` if there are any.
        split: Such as train, train[:1000] or train[10%:20%]. Files without a folder are all train.
        name: The configuration of a Hub dataset that has several.
        limit_dataset_samples: Use only this many rows of the split.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data.

    Raises:
        UserError: The data can't be had, a column is missing or a row is broken.
    """
    mapping = column_mapping or {}
    unknown = [role for role in mapping if role not in ("messages", "tools")]
    if unknown:
        raise UserError(
            f"column_mapping has no place for `{unknown[0]}`.",
            fix="write column_mapping: {messages: COLUMN, tools: COLUMN}, or one of them",
            argument="column_mapping",
        )
    rows = load_rows_or_errors(
        path_or_dataset_id,
        split,
        argument="path_or_dataset_id",
        limit=limit_dataset_samples,
        name=name,
        streaming=streaming,
    )
    yield from placed(rows, lambda row: row_conversation(row, mapping))


def row_conversation(row: Row, mapping: Mapping[str, str]) -> Conversation:
    """A row's messages and tools, not yet checked.

    Raises:
        UserError: There is no such column, or its text isn't JSON.
    """
    column = mapping.get("messages") or next((each for each in USUAL if each in row.values), None)
    if column is None:
        raise UserError(
            f"{row.place} has neither a column `messages` nor `conversations`.",
            fix=f"its columns are {', '.join(row.values)}; "
            "name one with column_mapping: {messages: COLUMN}",
            argument="column_mapping",
        )
    return Conversation(json_of(row, column, "column_mapping"), tools_of(row, mapping))


def tools_of(row: Row, mapping: Mapping[str, str]) -> Any:
    if "tools" in mapping:
        return json_of(row, mapping["tools"], "column_mapping")
    return json_of(row, "tools") if row.values.get("tools") else None
