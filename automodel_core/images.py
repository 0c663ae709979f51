"""Images as models are given them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from automodel_core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(origin: Path | bytes) -> Image:
    """An image in RGB, turned upright as its EXIF data say.

    Args:
        origin: Its file, or what the file holds.

    Raises:
        UserError: It isn't there, it is no image that Pillow reads, or there is no Pillow.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UserError(
            "Images are read with Pillow, which isn't installed.",
            fix="pip install 'automodel-core[vision]'",
        ) from None
    held = io.BytesIO(origin) if isinstance(origin, bytes) else origin
    try:
        with Image.open(held) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"the image can't be read: {error}") from None
