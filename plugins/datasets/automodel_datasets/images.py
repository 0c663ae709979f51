"""Images as rows hold them, and as models are given them: decoded only when a sample is fetched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from automodel_core.errors import UserError
from automodel_core.images import decode


@attrs.frozen
class ImageSource:
    """An image that isn't decoded yet.

    Attributes:
        origin: The file, or what the file holds.
        place: The row that it belongs to, for errors.
    """

    origin: Path | bytes
    place: str

    def decode(self) -> Image.Image:
        """The image in RGB, turned upright as its EXIF data say.

        Raises:
            UserError: It is no image that Pillow reads.
        """
        try:
            return decode(self.origin)
        except UserError as error:
            raise UserError(f"{self.place}: {error.message}", fix=error.fix) from None


def image_source(value: Any, folders: Sequence[Path], place: str) -> ImageSource:
    """What a row holds as an image: a file name, bytes, or both as `datasets` stores its Image.

    Args:
        value: From the row.
        folders: Where relative file names start; the first that has the file.
        place: The row.

    Raises:
        UserError: There is no such file, or it is something else.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        held = io.BytesIO()
        value.save(held, "PNG")
        value = held.getvalue()
    if isinstance(value, bytes) and value:
        return ImageSource(value, place)
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{place} has no image but {type(value).__name__}: {value!r:.60}",
            fix="write a file name, or bytes in Parquet",
        )
    if "://" in value:
        raise UserError(f"{place}: {value} is not a file.", fix="download it and name the file")
    path = Path(value).expanduser()
    found = [each for folder in folders if (each := folder / path).is_file()]
    if not found:
        raise UserError(
            f"{place}: there is no image {path}.",
            fix=f"a relative name starts at {' or '.join(map(str, folders))}",
        )
    return ImageSource(found[0], place)


def folders_of(location: str | Sequence[str]) -> list[Path]:
    """Where the relative file names in a data file, list of files or folder start."""
    listed = [location] if isinstance(location, str) else location
    paths = [Path(each).expanduser() for each in listed]
    return list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))


def shrunk(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """At most so many pixels, in the same proportions."""
    pixels = image.width * image.height
    if max_pixels is None or pixels <= max_pixels:
        return image
    scale = (max_pixels / pixels) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)
