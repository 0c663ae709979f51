"""From what a user says to the tokens that stood before an answer in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from automodel_core.answer.loading import OpenedModel
from automodel_core.errors import UserError

Message = Mapping[str, str]


class Prompter:
    """Writes prompts as training did: by the chat template, else as the run's data set wrote them.

    Attributes:
        chats: Whether there is a chat template. Without one there is no conversation: each text is
            completed on its own.
        write: From a text to the prompt that the run's data set would have made of it; None if
            nothing says, and texts are completed as they stand.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], str] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chats = bool(tokenizer.chat_template)
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
        return cls(opened.tokenizer, write)

    def ask(self, text: str) -> list[int]:
        """The prompt of a single question or text.

        Raises:
            UserError: The chat template refuses it.
        """
        if self.chats:
            return self.conversation([{"role": "user", "content": text}])
        return self._completion(self.write(text) if self.write else text)

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of the next answer in a conversation.

        Raises:
            UserError: There is no chat template, or it refuses the conversation.
        """
        if not self.chats:
            raise UserError(
                "The model has no chat template, so it can't be given messages.",
                fix='write {"prompt": "..."}',
            )
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template refuses the conversation: {error}") from None
        return self._tokens(text)

    def answer(self, ids: Sequence[int]) -> str:
        """The words of an answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _completion(self, text: str) -> list[int]:
        """A text with BOS in front, if the tokenizer puts it there itself; nothing behind it."""
        bos = self.tokenizer.bos_token_id
        before = [bos] if bos is not None and bos in self.tokenizer("")["input_ids"] else []
        return before + self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def room_for(prompt: Sequence[int], context: int | None, max_new_tokens: int) -> int:
    """How many tokens an answer may have: 0 or less if the prompt fills the model's context.

    Args:
        prompt: Its tokens.
        context: How many the model takes; None if it says nothing.
        max_new_tokens: What the user wants at most.
    """
    return max_new_tokens if context is None else min(max_new_tokens, context - len(prompt))
