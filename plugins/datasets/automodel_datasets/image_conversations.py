"""Conversations about images, as samples that the collator of images and text takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from automodel_core.errors import UserError
from automodel_datasets.images import ImageSource, folders_of, image_source
from automodel_datasets.rows import Row
from automodel_datasets.sources import load_rows

ROLES = ("system", "user", "assistant")


@attrs.frozen
class Conversation:
    """Messages whose parts are texts and images.

    Attributes:
        messages: Each `{"role": ..., "content": [...]}` with parts `{"type": "text", "text": ...}`
            and `{"type": "image"}`.
        images: In the order of the image parts.
        place: The row it comes from, for errors.
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[ImageSource]
    place: str


class ImageConversations:
    """Conversations in the order of their rows; images are decoded as samples are fetched, which
    is in the loader's workers."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`messages`, the decoded `images` and the sample's `place`."""
        found = self.conversations[index]
        images = [image.decode() for image in found.images]
        return {"messages": found.messages, "images": images, "place": found.place}

    def identity(self, index: int) -> bytes:
        """What tells this sample from others, without decoding it; see the core's `Dataset`."""
        found = self.conversations[index]
        digest = hashlib.sha256(json.dumps(found.messages).encode())
        for image in found.images:
            held = image.origin.read_bytes() if isinstance(image.origin, Path) else image.origin
            digest.update(held)
        return digest.digest()


def make_image_conversations(
    path_or_dataset: str | list[str],
    split: str = "train",
    messages_column: str = "messages",
    images_column: str = "images",
    limit_dataset_samples: int | None = None,
) -> ImageConversations:
    """Conversations in OpenAI's form with images among the parts of a message.

    An image part holds its image (`{"type": "image", "image": ...}`; `path` and `url` are read as
    well), or none: then it stands for the next one in the images column. An image is a file name,
    relative to the data file, bytes, or an Image of `datasets`.

    Args:
        path_or_dataset: A data file, a list of them, a folder, or a dataset on the Hub.
        split: Such as train or train[:1000].
        messages_column: Where the messages are.
        images_column: Where the images are that parts don't hold themselves; a list or one image.
        limit_dataset_samples: Use only this many rows of the split.

    Raises:
        UserError: The data can't be had, a row is broken or an image missing.
    """
    rows = load_rows(
        path_or_dataset, split, argument="path_or_dataset", limit=limit_dataset_samples
    )
    folders = folders_of(path_or_dataset)
    return ImageConversations(
        [conversation_of(row, messages_column, images_column, folders) for row in rows]
    )


def conversation_of(
    row: Row, messages_column: str, images_column: str, folders: Sequence[Path]
) -> Conversation:
    """One row, checked.

    Raises:
        UserError: A message is malformed, or images and image parts don't match.
    """
    written = row.values.get(messages_column)
    if not isinstance(written, list) or not written:
        raise UserError(
            f"{row.place} has no list of messages in `{messages_column}`.",
            fix=f"its columns are {', '.join(row.values)}",
            argument="messages_column",
        )
    beside = row.values.get(images_column)
    waiting = iter(beside if isinstance(beside, list) else [] if beside is None else [beside])
    messages: list[dict[str, Any]] = []
    images: list[ImageSource] = []
    for message in written:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise UserError(f"{row.place}: a message's role is {role!r}, not {', '.join(ROLES)}.")
        parts = list(parts_of(message.get("content"), waiting, row.place))
        held = [part["image"] for part in parts if part["type"] == "image"]
        if held and role == "assistant":
            raise UserError(f"{row.place}: the assistant can't answer with an image.")
        images += [image_source(each, folders, row.place) for each in held]
        shown = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        messages.append({"role": role, "content": shown})
    left = sum(1 for _ in waiting)
    if left:
        raise UserError(
            f"{row.place}: {left} of the images in `{images_column}` belong to no part of a "
            "message.",
            fix='put {"type": "image"} where each image stands',
        )
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{row.place} has no message of the assistant, so nothing to learn.")
    return Conversation(messages, images, row.place)


def parts_of(content: Any, waiting: Iterator[Any], place: str) -> Iterator[dict[str, Any]]:
    """The parts of a message, each with its text or its undecoded image."""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield {"type": "text", "text": part["text"]}
        elif kind in ("image", "image_url"):
            named = (part.get(key) for key in ("image", "path", "url", "image_url"))
            own = next((each for each in named if each is not None), None)
            image = own if own is not None else next(waiting, None)
            if image is None:
                raise UserError(f"{place} has more image parts than images.")
            yield {"type": "image", "image": image}
        else:
            raise UserError(f"{place}: a part of a message is neither text nor image: {part!r:.80}")


def image_questions(
    path_or_dataset: str,
    split: str,
    image: str,
    question: Callable[[Row], str],
    answer: Callable[[Row], str],
) -> ImageConversations:
    """Rows with one image, one question about it and one answer.

    Args:
        path_or_dataset: A dataset on the Hub, a local folder or a data file.
        split: Such as train or train[:1000].
        image: The column of images.
        question: What is asked.
        answer: What is answered.

    Raises:
        UserError: The data can't be had or a row is broken.
    """
    folders = folders_of(path_or_dataset)
    return ImageConversations(
        [
            one_turn(required_image(row, image), question(row), answer(row), folders, row.place)
            for row in load_rows(path_or_dataset, split, argument="path_or_dataset")
        ]
    )


def describe(row: Row) -> str:
    """What is asked where a set has images and texts, and no questions."""
    return "Describe this image."


def one_turn(
    image: Any, question: str, answer: str, folders: Sequence[Path], place: str
) -> Conversation:
    """An image, what is asked about it, and the answer."""
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return Conversation(messages, [image_source(image, folders, place)], place)


def required_image(row: Row, column: str) -> Any:
    """What a row holds in its column of images.

    Raises:
        UserError: There is no such column.
    """
    if column not in row.values:
        raise UserError(
            f"{row.place} has no column `{column}`.",
            fix=f"its columns are {', '.join(row.values)}",
            argument="path_or_dataset",
        )
    return row.values[column]
