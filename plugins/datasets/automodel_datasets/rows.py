"""Rows of JSONL, JSON, CSV and Parquet files, each with the place it came from.

The text formats are read as they are written: a CSV field is a string, never a guessed number, and
a row that can't be read is refused with its file and line.
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


@attrs.frozen
class Row:
    """One row of a source.

    Attributes:
        values: By column.
        place: Where it stands, as a user would look it up: "data/train.jsonl:12".
    """

    values: Mapping[str, Any]
    place: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in its order.

    Raises:
        UserError: The format isn't known, or a row is broken.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is not a data file: its name ends in none of {', '.join(READERS)}.",
            fix="rename or convert the file",
        )
    return reader(path)


def read_json_lines(path: Path) -> Iterator[Row]:
    """One JSON object on each line; empty lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield as_row(parse_json(line, path, number), f"{path}:{number}")


def read_json(path: Path) -> Iterator[Row]:
    """One JSON list of objects. A `.json` file that doesn't begin with `[` is read line by line."""
    content = path.read_bytes()
    if not content.lstrip().startswith(b"["):
        yield from read_json_lines(path)
        return
    for number, value in enumerate(parse_json(content, path), start=1):
        yield as_row(value, f"{path}, item {number}")


def read_csv(path: Path) -> Iterator[Row]:
    """A header and rows of strings, comma-separated, as RFC 4180 writes them."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if None in values:
                    raise UserError(f"{place} has more fields than the header.")
                yield Row(values, place)
        except UnicodeDecodeError:
            raise not_utf8(path) from None
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num + 1} is not valid CSV: {error}.") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """A Parquet file, a batch of rows in memory at a time."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            values = (each for batch in file.iter_batches() for each in batch.to_pylist())
            for number, row in enumerate(values, start=1):
                yield Row(row, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a valid Parquet file: {error}") from None


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
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
        raise not_utf8(path) from None
    except json.JSONDecodeError as error:
        bad_line = line + error.lineno - 1
        raise UserError(
            f"{path}:{bad_line} is not valid JSON: {error.msg}, at column {error.colno}."
        ) from None
    except RecursionError:
        raise UserError(f"{path}:{line} is JSON nested too deeply to be read.") from None


def not_utf8(path: Path) -> UserError:
    """Names the first line that isn't UTF-8 (a decoder that reads ahead doesn't know it)."""
    before, _, _ = path.read_bytes().decode(errors="replace").partition("\ufffd")
    line = before.count("\n") + 1
    return UserError(f"{path}:{line} is not UTF-8 text.", fix="save the file as UTF-8")


def as_row(value: Any, place: str) -> Row:
    """A JSON object as a row; any other JSON value is refused."""
    if not isinstance(value, dict):
        raise UserError(
            f"{place} is a JSON {type(value).__name__}, not an object.",
            fix='write each row as {"column": "value", ...}',
        )
    return Row(value, place)


def text_of(row: Row, column: str, argument: str | None = None) -> str:
    """The text in a column, without white space around it; "" for a null.

    Args:
        row: Any row.
        column: The column's name.
        argument: The parameter that `column` came from, for errors.

    Raises:
        UserError: There is no such column, or it holds something else than text.
    """
    if column not in row.values:
        raise UserError(
            f"{row.place} has no column `{column}`.",
            fix=f"its columns are {', '.join(row.values)}",
            argument=argument,
        )
    value = row.values[column]
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{row.place}: `{column}` is not text but {type(value).__name__}: {value!r:.60}",
            fix="write it as a string",
        )
    return (value or "").strip()


def required_text(row: Row, column: str, argument: str | None = None) -> str:
    """As text_of, and refused if it is empty."""
    text = text_of(row, column, argument)
    if not text:
        raise UserError(f"{row.place}: `{column}` is empty.", fix="fill it in or remove the row")
    return text
