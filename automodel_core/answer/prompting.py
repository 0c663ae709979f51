"""From what a user says to the tokens that stood before an answer in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from automodel_core.answer.loading import OpenedModel
from automodel_core.errors import UserError
from automodel_core.images import decode

# `content` is a text, or a list of parts: texts, and images by the names of their files.
Message = Mapping[str, Any]


@attrs.frozen
class Prompt:
    """What an answer follows.

    Attributes:
        ids: The tokens.
        seen: What else the model is called with, `pixel_values` for one; tensors whose first
            dimension is of images, patches or this one prompt.
    """

    ids: list[int]
    seen: Mapping[str, Any] = attrs.field(factory=dict)


class Prompter:
    """Writes prompts as training did: by the chat template, else as the run's data set wrote them.

    Attributes:
        processor: Of a model that sees.
        chats: Whether there is a chat template. Without one there is no conversation: each text is
            completed on its own.
        write: From a text to the prompt that the run's data set would have made of it; None if
            nothing says, and texts are completed as they stand.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        write: Callable[[str], str] | None = None,
        processor: ProcessorMixin | None = None,
    ) -> None:
        self.tokenizer, self.processor = tokenizer, processor
        self.chats = bool(tokenizer.chat_template or getattr(processor, "chat_template", None))
        self.write = None if self.chats else write

    @classmethod
    def of(cls, opened: OpenedModel) -> Prompter:
        """The prompter of a model, after the run that made it."""
        config, write = opened.found.config, None
        if config is not None and not opened.tokenizer.chat_template:
            try:
                dataset = opened.found.targets.load(config.dataset)
            except UserError:  # not installed or allowed here, and not needed for anything else
                dataset = None
            write = getattr(dataset, "write_prompt", None)
        return cls(opened.tokenizer, write, opened.processor)

    def ask(self, text: str) -> Prompt:
        """The prompt of a single question or text.

        Raises:
            UserError: The chat template refuses it.
        """
        if self.chats:
            return self.conversation([{"role": "user", "content": text}])
        return Prompt(self._completion(self.write(text) if self.write else text))

    def conversation(self, messages: Sequence[Message], folder: Path = Path()) -> Prompt:
        """The prompt of the next answer in a conversation.

        Args:
            messages: What was said so far.
            folder: Where relative names of image files start.

        Raises:
            UserError: There is no chat template, it refuses the conversation, or an image can't be
                read or shown to this model.
        """
        if not self.chats:
            raise UserError(
                "The model has no chat template, so it can't be given messages.",
                fix='write {"prompt": "..."}',
            )
        if self.processor is not None:
            return self._processed(messages, folder)
        return Prompt(self._tokens(self._rendered([as_text(each) for each in messages])))

    def answer(self, ids: Sequence[int]) -> str:
        """The words of an answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _processed(self, messages: Sequence[Message], folder: Path) -> Prompt:
        """By the processor, which writes an image's tokens where the template puts the image."""
        named = [each for message in messages for each in image_files(message)]
        images = [decode(folder / name) for name in named]
        template = getattr(self.processor, "chat_template", None)
        template = template.get("default") if isinstance(template, dict) else template
        text = self._rendered([in_parts(each) for each in messages], template)
        bos = self.tokenizer.bos_token
        try:
            inputs = self.processor(
                text=[text],
                images=[images] if images else None,
                return_tensors="pt",
                add_special_tokens=not (bos and text.startswith(bos)),  # as in training
            )
        except ValueError as error:
            raise UserError(f"The processor refuses the conversation: {error}") from None
        ids = inputs["input_ids"][0].tolist()
        left_out = ("input_ids", "attention_mask")
        seen = {name: value for name, value in inputs.items() if name not in left_out}
        return Prompt(ids, seen if images else {})

    def _rendered(self, messages: Sequence[Message], template: str | None = None) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"The chat template refuses the conversation: {error}") from None

    def _completion(self, text: str) -> list[int]:
        """A text with BOS in front, if the tokenizer puts it there itself; nothing behind it."""
        bos = self.tokenizer.bos_token_id
        before = [bos] if bos is not None and bos in self.tokenizer("")["input_ids"] else []
        return before + self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def parts(message: Message) -> list[Mapping[str, Any]]:
    """The contents of a message as a list."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def image_files(message: Message) -> list[str]:
    """The image files that are shown in a message."""
    return [part["image"] for part in parts(message) if part["type"] == "image"]


def in_parts(message: Message) -> dict[str, Any]:
    """As processors' templates take a message."""
    content = [part if part["type"] == "text" else {"type": "image"} for part in parts(message)]
    return {**message, "content": content}


def as_text(message: Message) -> dict[str, Any]:
    """As tokenizers' templates take a message.

    Raises:
        UserError: It shows an image.
    """
    if image_files(message):
        raise UserError("This model reads no images.", fix="name one that does, or leave them out")
    return {**message, "content": "".join(part["text"] for part in parts(message))}


def room_for(prompt: Prompt, context: int | None, max_new_tokens: int) -> int:
    """How many tokens an answer may have: 0 or less if the prompt fills the model's context.

    Args:
        prompt: Its tokens count, those of images too.
        context: How many the model takes; None if it says nothing.
        max_new_tokens: What the user wants at most.
    """
    return max_new_tokens if context is None else min(max_new_tokens, context - len(prompt.ids))
