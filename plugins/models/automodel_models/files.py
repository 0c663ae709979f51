"""Where a model's files are, and which of them hold the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs

from automodel_core.errors import UserError
from automodel_models import hub
from automodel_models.integrity import check_weight_file

# In the order in which transformers prefers them: one file, or an index that names several.
STORED_AS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@attrs.frozen(kw_only=True)
class Wanted:
    """What to look for.

    Attributes:
        name: Hub repository, folder or GGUF file, as the user wrote it.
        argument: The parameter that holds `name`, for errors.
        revision: Branch, tag or commit on the Hub.
        gguf_file: Which GGUF of the folder or repository.
        with_code: The model's Python files too.
        with_weights: Without, only its configuration is looked for.
    """

    name: str
    argument: str
    revision: str | None = None
    gguf_file: str | None = None
    with_code: bool = False
    with_weights: bool = True


@attrs.frozen(kw_only=True)
class ModelFiles:
    """A folder with a model's files; of a Hub model, the weights may still have to be fetched.

    Attributes:
        name: As the user wrote it.
        argument: The parameter that holds `name`, for errors.
        folder: Holds at least the configuration, or the GGUF file.
        weights: The files that hold the weights, with their bytes; empty if none are wanted.
        gguf_file: The one file that is the whole model, if it is a GGUF.
        commit: Of a Hub model, the resolved commit.
    """

    name: str
    argument: str
    folder: Path
    weights: Mapping[str, int]
    gguf_file: str | None
    commit: str | None

    def fetch_weights(self) -> None:
        """Have all weights in `folder`, and whole.

        Raises:
            UserError: They can't be fetched, or a file was cut short.
        """
        missing = [name for name in self.weights if not (self.folder / name).is_file()]
        if missing and self.commit:
            hub.fetch_files(self.name, self.commit, missing, self.argument)
        for name in self.weights:
            check_weight_file(self.folder / name, self.argument)


def locate(wanted: Wanted) -> ModelFiles:
    """Find a model. What exists on this machine is taken before the Hub is asked.

    Raises:
        UserError: There is no such model, or its files aren't whole.
    """
    name, path = wanted.name, Path(wanted.name).expanduser()
    if path.exists() and wanted.revision is not None:
        raise UserError(
            f"{name} is on this machine, and only models on the Hub have revisions.",
            fix="leave revision out",
            argument="revision",
        )
    if path.is_file() and path.suffix == ".gguf":
        return _settle(attrs.evolve(wanted, gguf_file=path.name), path.parent, None)
    if path.is_dir():
        return _settle(wanted, path, None)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{name} is a file, and no GGUF." if path.exists() else f"There is no folder {name}.",
            fix="write the path of a folder that save_pretrained wrote, or OWNER/MODEL on the Hub",
            argument=wanted.argument,
        )
    folder = hub.fetch_small_files(name, wanted.revision, wanted.with_code, wanted.argument)
    return _settle(wanted, folder, folder.name)


def _settle(wanted: Wanted, folder: Path, commit: str | None) -> ModelFiles:
    """Decide which files hold the model, and see that they are all there."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    if commit and wanted.with_weights:
        sizes |= hub.weight_sizes(wanted.name, commit) or {}
    if "adapter_config.json" in sizes:
        raise UserError(
            f"{wanted.name} holds an adapter, not a whole model.",
            fix="write the model that it was trained on (base_model_name_or_path in its "
            "adapter_config.json), or merge the two first",
            argument=wanted.argument,
        )
    gguf_file = wanted.gguf_file or _gguf_of(wanted, sizes)
    if gguf_file is None and "config.json" not in sizes:
        raise UserError(
            f"{wanted.name} has no config.json, so it isn't a transformers model.",
            fix="write a folder that save_pretrained wrote, a model on the Hub, or a .gguf file",
            argument=wanted.argument,
        )
    names = [gguf_file] if gguf_file else _weights_of(wanted, folder, sizes)
    _check_complete(wanted, names, sizes, on_hub=commit is not None)
    files = ModelFiles(
        name=wanted.name,
        argument=wanted.argument,
        folder=folder,
        weights={name: sizes[name] for name in names},
        gguf_file=gguf_file,
        commit=commit,
    )
    if gguf_file or commit is None:  # a GGUF is its own configuration, so it is needed now
        files.fetch_weights()
    return files


def _gguf_of(wanted: Wanted, sizes: Mapping[str, int]) -> str | None:
    """The GGUF to take from a folder that has no other weights, if there is one."""
    found = sorted(name for name in sizes if name.endswith(".gguf"))
    has_others = any(name in sizes for pair in STORED_AS for name in pair)
    if not found or not wanted.with_weights or ("config.json" in sizes and has_others):
        return None
    if len(found) > 1:
        raise UserError(
            f"{wanted.name} holds {len(found)} GGUF files: {', '.join(found[:4])}"
            f"{' ...' if len(found) > 4 else ''}",
            fix=f"say which, as in gguf_file: {found[0]}",
            argument="gguf_file",
        )
    return found[0]


def _weights_of(wanted: Wanted, folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """The files that transformers will read the weights from."""
    if not wanted.with_weights:
        return []
    for single, index in STORED_AS:
        if single in sizes:
            return [single]
        if index in sizes:
            return _shards_in(folder / index, wanted.argument)
    raise UserError(
        f"{wanted.name} has a config.json and no weights beside it.",
        fix="download or save the model again; for random weights use "
        "_target_: causal_lm_from_config",
        argument=wanted.argument,
    )


def _shards_in(index: Path, argument: str) -> list[str]:
    """The files that an index of weights names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index} is damaged: it is no index of weights.",
            fix="copy or download it again",
            argument=argument,
        ) from None


def _check_complete(
    wanted: Wanted, names: list[str], sizes: Mapping[str, int], on_hub: bool
) -> None:
    """Refuse an interrupted download or copy before anything is read."""
    missing = [name for name in names if name not in sizes]
    if not missing:
        return
    raise UserError(
        f"{wanted.name} is only half here: {len(missing)} of {len(names)} files of weights are "
        f"missing, such as {missing[0]}.",
        fix=f"run `hf download {wanted.name}` while online"
        if on_hub
        else "copy or download it again",
        argument=wanted.argument,
    )
