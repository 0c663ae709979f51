"""Tokenise once: what took long to tokenise is found again by what it was made of.

An entry is a folder under `~/.cache/automodel/tokens`. Its name is a hash of the author's function
and its arguments, the options, the tokenizer and the code; in it stand the files that were read,
with their sizes and times. Of the Hub's data sets it is which version was read. If any of them has
changed, or anything else came from the network, there is no entry.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from automodel_core.caches import cache_folder
from automodel_core.progress import report
from automodel_datasets.building import TokenisedDataset
from automodel_datasets.hub import is_current
from automodel_datasets.making import ENTRY, MadeElsewhere, Making, lock_of
from automodel_datasets.options import Options
from automodel_datasets.reading import stamp
from automodel_datasets.stored import Arrays, StoredTexts, Texts

# Where the cache is; empty for none.
PLACE = "AUTOMODEL_TOKEN_CACHE"

PACKAGES = ("automodel-core", "transformers", "tokenizers")


def once(
    author: Callable[..., Any],
    arguments: Mapping[str, Any],
    options: Options,
    build: Callable[[Callable[[Arrays], None]], list[str]],
) -> TokenisedDataset:
    """What `build` makes, or made the last time, or another process makes now.

    Args:
        author: The function that yields the items.
        arguments: What it is called with.
        options: The engine's.
        build: Reads, writes and tokenises; gives the samples to what it is called with, and returns
            the notes. Its errors leave nothing behind.
    """
    root, name = place(), name_of(author, arguments, options)
    if root is None or name is None:
        parts: list[Arrays] = []
        notes = build(parts.append)
        return TokenisedDataset(Texts(Arrays.joined(parts)), notes)
    while (found := find(root, name)) is None:
        try:
            with Making(root, name) as making:
                return making.finished(build(making.add))
        except MadeElsewhere:
            report("Another process tokenises this data set; waiting for it", None)
            with lock_of(root, name):
                pass
    return found


def place() -> Path | None:
    """Where entries are kept."""
    named = os.environ.get(PLACE, str(cache_folder("tokens")))
    return Path(named) if named else None


def name_of(
    author: Callable[..., Any], arguments: Mapping[str, Any], options: Options
) -> str | None:
    """A hash of all that decides what comes out, but for the files; None if that can't be told."""
    tokenizer, model = options.tokenizer, options.model_config
    source = inspect.getsourcefile(author)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if source is None or not Path(source).is_file() or backend is None:
        return None
    own = {key: "the run's" if value is tokenizer or value is model else value
           for key, value in arguments.items()}  # fmt: skip
    told = {k: v for k, v in tokenizer.init_kwargs.items() if k not in WHENCE}
    settled = attrs.asdict(options, filter=lambda field, _: field.name not in BY_ITSELF)
    template = tokenizer.chat_template
    parts = {
        "author": [author.__module__, author.__qualname__, Path(source).read_text()],
        "arguments": own,
        "options": [type(options).__name__, settled, options.limit],
        "tokenizer": [type(tokenizer).__name__, backend.to_str(), template],
        "special": [tokenizer.special_tokens_map, told],
        "code": [own_code(), *map(version, PACKAGES)],
        "folder": os.getcwd(),
        # Llama 3's template writes the date.
        "day": time.strftime("%x") if "strftime_now" in json.dumps(template) else "",
    }
    try:
        named = json.dumps(parts, sort_keys=True, default=plain)
    except TypeError:
        return None
    return hashlib.sha256(named.encode()).hexdigest()[:32]


# Where a tokenizer came from, which says nothing of what it does.
WHENCE = ("name_or_path", "local_files_only", "is_local", "token", "_commit_hash")

# What stands in the name in another form.
BY_ITSELF = ("tokenizer", "model_config")


def plain(value: Any) -> Any:
    """Paths and added tokens as what they say; of anything else nobody knows what it does."""
    if isinstance(value, Path) or type(value).__name__ == "AddedToken":
        return repr(value)
    raise TypeError


@cache
def own_code() -> str:
    """A hash of this package."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find(root: Path, name: str) -> TokenisedDataset | None:
    """The entry whose files are still as they were."""
    for folder in sorted(root.glob(f"{name}-*")):
        try:
            entry = json.loads((folder / ENTRY).read_text())
        except (OSError, ValueError):
            continue
        files = entry["files"].items()
        same = all(stamp(path) == (tuple(was) if was else None) for path, was in files)
        if same and all(is_current(*each) for each in entry["prepared"]):
            return TokenisedDataset(StoredTexts(folder), entry["notes"])
    return None
