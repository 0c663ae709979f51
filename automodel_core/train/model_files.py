"""The weights in a transformers folder: which files hold them, and whether they fit a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from automodel_core.errors import UserError

logger = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with the weights; empty if the folder has none.

    Raises:
        ValueError: The index can't be read, or names a file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of weights") from None
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index} names files outside its folder")
    return [folder / name for name in names]


def check_fit(
    name: str, absent: Collection[str], unfit: Collection[str], unused: Collection[str]
) -> None:
    """Refuse weights that leave a part of the model random; mention what it doesn't use.

    Args:
        name: What to call the model.
        absent: Tensors of the model that the files lack.
        unfit: Those of another shape.
        unused: Tensors of the files that the model lacks.

    Raises:
        UserError: Some are absent or unfit.
    """
    if absent or unfit:
        what = "lack" if absent else "have other shapes than the configuration says for"
        first = sorted(absent or unfit)[0]
        raise UserError(
            f"The weights of {name} {what} {len(absent or unfit)} of the model's tensors, "
            f"such as {first}. Training would start from noise there.",
            fix="check that config.json and the weights belong together",
        )
    if unused:
        logger.warning(
            "%s has %d tensors that the model doesn't use, such as %s; they won't be saved.",
            name, len(unused), sorted(unused)[0],
        )  # fmt: skip
