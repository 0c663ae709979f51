"""Rows of JSONL, JSON, CSV and Parquet files, each with the place it came from.

The text formats are read as they are written: a CSV field is a string, never a guessed number. A
row that can't be read comes as a UserError that names its file and line, in the row's place:
whoever reads raises it, or counts it and goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pyarrow
import pyarrow.parquet

from automodel_core.errors import UserError
from automodel_datasets.reading import note, reached

# Lines after which it is told how far a file is read.
TELL = 1000


@attrs.frozen
class Row:
    """One row of a source.

    Attributes:
        values: By column.
        place: Where it stands, as a user would look it up: "data/train.jsonl:12".
    """

    values: Mapping[str, Any]
    place: str


RowOrError = Row | UserError


def read_rows(path: Path) -> Iterator[RowOrError]:
    """The rows of one file, in its order.

    Raises:
        UserError: The format isn't known, or the file as a whole is broken.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is not a data file: its name ends in none of {', '.join(READERS)}.",
            fix="rename or convert the file",
        )
    return reader(path)


def read_json_lines(path: Path) -> Iterator[RowOrError]:
    """One JSON object on each line; empty lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parsed_row(line.rstrip(), path, number)  # an error at its end is in it
            if number % TELL == 0:
                reached(str(path), lines.tell())


def read_json(path: Path) -> Iterator[RowOrError]:
    """One JSON list of objects. A `.json` file that doesn't begin with `[` is read line by line."""
    content = path.read_bytes()
    if not content.lstrip().startswith(b"["):
        yield from read_json_lines(path)
        return
    values = parse_json(content, path)
    for number, value in enumerate(values, start=1):
        yield as_row(value, f"{path}, item {number}")
        reached(str(path), number, len(values))


def read_csv(path: Path) -> Iterator[RowOrError]:
    """A header and rows of strings, comma-separated, as RFC 4180 writes them."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if None in values:
                    yield UserError(f"{place} has more fields than the header.")
                else:
                    yield Row(values, place)
                if reader.line_num % TELL == 0:
                    reached(str(path), lines.buffer.tell())
        except UnicodeDecodeError:  # its own place is one of a buffer
            raise not_utf8(path, path.read_bytes()) from None
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num + 1} is not valid CSV: {error}.") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """A Parquet file, a batch of rows in memory at a time."""
    note(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            values = (each for batch in file.iter_batches() for each in batch.to_pylist())
            for number, row in enumerate(values, start=1):
                yield Row(row, f"{path}, row {number}")
                reached(str(path), number, file.metadata.num_rows)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a valid Parquet file: {error}") from None


READERS: Mapping[str, Callable[[Path], Iterator[RowOrError]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def parse_json(content: bytes, path: Path, line: int = 1) -> Any:
    """JSON that a user wrote in `path`, beginning at `line`.

    Raises:
        UserError: It isn't JSON; the message names the line.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        raise not_utf8(path, content, line) from None
    except json.JSONDecodeError as error:
        bad_line = line + error.lineno - 1
        raise UserError(
            f"{path}:{bad_line} is not valid JSON: {error.msg}, at column {error.colno}."
        ) from None
    except RecursionError:
        raise UserError(f"{path}:{line} is JSON nested too deeply to be read.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}:{line} can't be read: {error}.") from None


def not_utf8(path: Path, content: bytes, first_line: int = 1) -> UserError:
    """Names the first line of `content`, a part of `path`, that isn't UTF-8."""
    lines = content.split(b"\n")
    wrong = (number for number, line in enumerate(lines, first_line) if not is_utf8(line))
    line = next(wrong, first_line)
    return UserError(f"{path}:{line} is not UTF-8 text.", fix="save the file as UTF-8")


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_unicode(value: Any) -> bool:
    """Whether it is text that a tokenizer takes: JSON can spell half of a character, "\\ud83d"."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parsed_row(line: bytes, path: Path, number: int) -> RowOrError:
    try:
        return as_row(parse_json(line, path, number), f"{path}:{number}")
    except UserError as error:
        return error


def as_row(value: Any, place: str) -> RowOrError:
    """A JSON object as a row; any other JSON value is none."""
    if not isinstance(value, dict):
        return UserError(
            f"{place} is a JSON {type(value).__name__}, not an object.",
            fix='write each row as {"column": "value", ...}',
        )
    return Row(value, place)


def value_of(row: Row, column: str, argument: str | None = None) -> Any:
    """What a column holds.

    Args:
        row: Any row.
        column: The column's name.
        argument: The parameter that `column` came from, for errors.

    Raises:
        UserError: There is no such column; the message has those that there are.
    """
    if column not in row.values:
        raise UserError(
            f"{row.place} has no column `{column}`.",
            fix=f"its columns are {', '.join(row.values)}",
            argument=argument,
        )
    return row.values[column]


def unstripped_text(row: Row, column: str, argument: str | None = None) -> str:
    """The text in a column as it is; "" for a null.

    Raises:
        UserError: There is no such column, or it holds something else than text.
    """
    value = value_of(row, column, argument)
    if value is not None and not is_unicode(value):
        raise UserError(
            f"{row.place}: `{column}` is not text but {type(value).__name__}: {value!r:.60}",
            fix="write it as a string",
        )
    return value or ""


def text_of(row: Row, column: str, argument: str | None = None) -> str:
    """As unstripped_text, without the white space around it."""
    return unstripped_text(row, column, argument).strip()


def json_of(row: Row, column: str, argument: str | None = None) -> Any:
    """What a column holds, of any form; text is read as JSON, as a CSV file must write it.

    Raises:
        UserError: There is no such column, or its text isn't JSON.
    """
    value = value_of(row, column, argument)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{row.place}: `{column}` is not valid JSON ({error}): {value!r:.60}"
        ) from None


def required_text(row: Row, column: str, argument: str | None = None) -> str:
    """As text_of, and refused if it is empty."""
    text = text_of(row, column, argument)
    if not text:
        raise UserError(f"{row.place}: `{column}` is empty.", fix="fill it in or remove the row")
    return text
