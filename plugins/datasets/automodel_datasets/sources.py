"""From what a YAML file names (files, a folder, a repository on the Hub) to rows."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import EmptyDatasetError

from automodel_core.errors import UserError
from automodel_datasets.hub import hub_rows, numbered, streamed_hub_rows
from automodel_datasets.reading import expect
from automodel_datasets.rows import READERS, Row, RowOrError, read_rows

# The rows of one split, from the beginning each time it is called.
Rows = Callable[[], Iterator[RowOrError]]

# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder.
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"


def load_rows(
    location: str | Sequence[str],
    split: str,
    *,
    argument: str,
    limit: int | None = None,
    name: str | None = None,
) -> Iterator[Row]:
    """As load_rows_or_errors; the first broken row is raised."""
    rows = load_rows_or_errors(location, split, argument=argument, limit=limit, name=name)
    return map(raised, rows)


def raised(row: RowOrError) -> Row:
    if isinstance(row, UserError):
        raise row
    return row


def load_rows_or_errors(
    location: str | Sequence[str],
    split: str,
    *,
    argument: str,
    limit: int | None = None,
    limit_argument: str = "limit_dataset_samples",
    name: str | None = None,
    streaming: bool = False,
) -> Iterator[RowOrError]:
    """The rows of one split, read as they are asked for; an error stands for a broken one.

    Args:
        location: A file, a list of files, a glob, a folder, or a dataset on the Hub.
        split: A split, or a slice or sum of splits in the notation of `datasets`: `train`,
            `train[:1000]`, `train[10%:20%]`, `train+validation`. Files without a folder are all
            `train`; in a folder the file names tell, by the rules of `datasets`.
        argument: The parameter that `location` came from, for errors.
        limit: Stop after this many rows.
        limit_argument: The parameter that `limit` came from, for errors.
        name: The configuration of a dataset on the Hub that has several.
        streaming: Take rows of the Hub over the network as they are asked for, none of it kept.

    Raises:
        UserError: There is no such source or split, or a file is broken as a whole.
    """
    if limit is not None and limit < 1:
        raise UserError(
            f"{limit_argument} is {limit}: no row would be left.",
            fix="write 1 or more, or leave it out",
            argument=limit_argument,
        )
    if is_on_disk(location):
        if name is not None:
            raise UserError(
                f"`name` chooses a configuration on the Hub, but {location} is on this machine.",
                fix="leave it out",
                argument="name",
            )
        rows = sliced(local_splits(location, argument), split)
    else:
        from_hub = streamed_hub_rows if streaming else hub_rows
        rows = from_hub(str(location), split, argument=argument, name=name)
    return islice(rows, limit)


def is_on_disk(location: str | Sequence[str]) -> bool:
    """Whether files are meant: a list, what exists here, or what can't be a name on the Hub."""
    if not isinstance(location, str):
        return True
    path = Path(location).expanduser()
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1
    is_file = path.exists() or path.suffix.lower() in READERS
    return looks_local or is_file or glob.has_magic(location)


def local_splits(location: str | Sequence[str], argument: str) -> Mapping[str, Rows]:
    """The splits of files or of a folder.

    Raises:
        UserError: Something isn't there, or the folder holds no data.
    """
    listed = [location] if isinstance(location, str) else location
    paths = [path for each in listed for path in matching(each, argument)]
    if len(paths) == 1 and paths[0].is_dir():
        return folder_splits(paths[0], argument)
    return {"train": partial(rows_of_files, paths)}


def matching(location: str, argument: str) -> list[Path]:
    """A file or folder, or what a glob finds, sorted by name.

    Raises:
        UserError: There is nothing of that name.
    """
    path = Path(location).expanduser()
    if path.exists():
        return [path]
    found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(location) else []
    if not found:
        raise UserError(
            f"There is no file or folder {path}.",
            fix=f"check the path; a relative one starts at {Path.cwd()}",
            argument=argument,
        )
    return list(map(Path, found))


def folder_splits(folder: Path, argument: str) -> Mapping[str, Rows]:
    """The splits of a folder of data files, or of one that `save_to_disk` wrote."""
    if (folder / SAVED_DATASET).is_file() or (folder / SAVED_SPLITS).is_file():
        saved = datasets.load_from_disk(str(folder))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {name: partial(numbered, rows, str(folder)) for name, rows in splits.items()}
    try:
        builder = datasets.load_dataset_builder(str(folder))
    except (EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError):
        raise UserError(
            f"The folder {folder} holds no data files ({', '.join(READERS)}).",
            fix="name the files train.jsonl, validation.jsonl, ...",
            argument=argument,
        ) from None
    files = builder.config.data_files
    return {str(name): partial(rows_of_files, list(map(Path, files[name]))) for name in files}


def rows_of_files(paths: Sequence[Path]) -> Iterator[RowOrError]:
    expect({str(path): path.stat().st_size for path in paths})
    return chain.from_iterable(map(read_rows, paths))


def sliced(splits: Mapping[str, Rows], split: str) -> Iterator[RowOrError]:
    """The rows that `split` asks for.

    Raises:
        UserError: `split` can't be read, or there is none of that name.
    """
    # Counting reads every row, so it is left to slices; a whole split needs no length.
    lengths = {
        name: sum(1 for _ in rows()) if "[" in split and name in split else sys.maxsize
        for name, rows in splits.items()
    }
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except ValueError as error:
        raise UserError(
            f"{error}",
            fix="write a split such as train, train[:1000] or train[10%:20%]",
            argument="split",
        ) from None
    return chain.from_iterable(part_of(splits[part.splitname], part) for part in parts)


def part_of(rows: Rows, part: Any) -> Iterator[RowOrError]:
    return islice(rows(), part.from_, part.to)
