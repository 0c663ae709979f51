"""Rows of a dataset on the Hugging Face Hub, and what to do when they can't be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from datasets.features.features import require_decoding

from automodel_core.errors import UserError
from automodel_datasets.reading import accounted_for, expect, note, note_prepared, reached
from automodel_datasets.rows import Row


def hub_rows(repository: str, split: str, *, argument: str, name: str | None) -> Iterator[Row]:
    """The rows of one split of a dataset on the Hub, downloaded once and then read from its cache.

    Args:
        repository: Such as `rajpurkar/squad`.
        split: A split, or a slice of one in the notation of `datasets`.
        argument: The parameter that `repository` came from, for errors.
        name: The dataset's configuration, if it has several.

    Raises:
        UserError: It can't be had; the message says why and what to do.
    """
    rows = opened(repository, split, argument=argument, name=name)
    for file in rows.cache_files:
        note_prepared(repository, name, str(Path(file["filename"]).parent))
    return numbered(rows, f"{repository} {split}")


def streamed_hub_rows(
    repository: str, split: str, *, argument: str, name: str | None
) -> Iterator[Row]:
    """The same over the network, as they are asked for.

    Raises:
        UserError: It can't be had, or `split` is a slice.
    """
    if "[" in split:
        raise UserError(
            f"{split} is a slice, and of a set that is streamed from the Hub nobody knows the "
            "length.",
            fix="write the whole split; the argument that limits the rows takes its first ones",
            argument="split",
        )
    rows = opened(repository, split, argument=argument, name=name, streaming=True)
    for number, values in enumerate(rows, start=1):
        yield Row(values, f"{repository} {split}, row {number}")


def opened(repository: str, split: str, *, argument: str, name: str | None, **how: Any) -> Any:
    """As `datasets` gives it; what it says against it as a UserError."""
    try:
        with accounted_for():
            return datasets.load_dataset(repository, name, split=split, **how)
    except DatasetNotFoundError as error:
        raise not_found(repository, str(error), argument) from None
    except ConnectionError:
        raise unreachable(repository, argument) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise refused(repository, error, argument) from error


def is_current(repository: str, name: str | None, folder: str) -> bool:
    """Whether `datasets` would load it from this folder still; it asks the Hub, if it can."""
    try:
        return Path(datasets.load_dataset_builder(repository, name).cache_dir) == Path(folder)
    except (OSError, ValueError, RuntimeError):  # loading it will tell
        return False


def numbered(rows: datasets.Dataset, source: str) -> Iterator[Row]:
    for file in rows.cache_files:  # Arrow opens them itself
        note(file["filename"])
    expect({source: len(rows)})
    for number, values in enumerate(undecoded(rows), start=1):
        yield Row(values, f"{source}, row {number}")
        reached(source, number)


def undecoded(rows: datasets.Dataset) -> Iterable[Mapping[str, Any]]:
    """Rows whose images stay the bytes that they are stored as, to be decoded when needed."""
    if not any(map(require_decoding, rows.features.values())):
        return rows
    tables = rows.with_format("arrow").iter(batch_size=100)
    return (row for table in tables for row in table.to_pylist())


def not_found(repository: str, message: str, argument: str) -> UserError:
    """The Hub has no such dataset, or doesn't show it to this user."""
    if "gated" in message:
        return UserError(
            f"{repository} is a gated dataset: its owner asks you to accept terms first.",
            fix=f"accept them at https://huggingface.co/datasets/{repository}, "
            "then set HF_TOKEN or log in with `hf auth login`",
            argument=argument,
        )
    return UserError(
        f"{repository} is neither a file or folder in {Path.cwd()} nor a dataset on the Hub "
        "that you can see.",
        fix="check the spelling; for a private dataset set HF_TOKEN",
        argument=argument,
    )


def unreachable(repository: str, argument: str) -> UserError:
    """No network, or HF_HUB_OFFLINE, and nothing in the cache."""
    return UserError(
        f"{repository} is neither a file or folder in {Path.cwd()} nor in this machine's cache, "
        "and the Hub can't be reached"
        + (" (HF_HUB_OFFLINE is set)." if datasets.config.HF_HUB_OFFLINE else "."),
        fix="download it first with network access, or name a local file or folder",
        argument=argument,
    )


def refused(repository: str, error: Exception, argument: str) -> UserError:
    """What `datasets` itself says: an unknown split, a missing configuration, a loading script."""
    first_lines = " ".join(str(error).split("\n")[:3])
    if "split" in first_lines or "instruction" in first_lines:
        return UserError(f"{repository}: {first_lines}", argument="split")
    if "Config" in first_lines:
        return UserError(f"{repository}: {first_lines}", fix="choose one with `name`")
    return UserError(f"{repository} can't be loaded: {first_lines}", argument=argument)
