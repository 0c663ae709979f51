"""A conversation in the terminal, with one model or with two side by side."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from automodel_core.answer.loading import context_length
from automodel_core.answer.prompting import Message, Prompt, Prompter, room_for
from automodel_core.answer.sampling import Sampling
from automodel_core.answer.streaming import TextStream, shown
from automodel_core.errors import UserError
from automodel_core.generation import Continuation, end_tokens, generate
from automodel_core.images import decode

COMMANDS = (
    "/reset forgets the conversation, /system TEXT begins one with TEXT, /image FILE shows an "
    "image with the next line, /exit leaves"
)


@attrs.define
class Speaker:
    """A model in a conversation of its own.

    Attributes:
        name: Heads its column.
        messages: What was said so far, the system's words first.
    """

    name: str
    model: PreTrainedModel
    messages: list[Message] = attrs.field(factory=list)


class PromptTooLong(Exception):
    """The conversation fills the model's context.

    Args:
        tokens: Of the prompt.
        context: What the model takes, its answer included.
    """

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(tokens, context)
        self.tokens, self.context = tokens, context


class Chat:
    """Takes lines and prints answers.

    Args:
        speakers: The models; two are compared.
        prompter: How to ask.
        sampling: How answers are drawn.
        max_new_tokens: The longest answer.
        system: The system's words, or "".
        images: Files that are shown with the first line of each conversation.
    """

    def __init__(
        self,
        speakers: Sequence[Speaker],
        prompter: Prompter,
        sampling: Sampling,
        max_new_tokens: int,
        system: str = "",
        images: Sequence[str] = (),
    ) -> None:
        self.speakers, self.prompter, self.sampling = speakers, prompter, sampling
        self.max_new_tokens, self.system, self.images = max_new_tokens, system, tuple(images)
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)
        self.turn = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but for the system's words and the images to begin with."""
        self.waiting = list(self.images)
        for speaker in self.speakers:
            speaker.messages = [{"role": "system", "content": self.system}] if self.system else []

    def talk(self) -> None:
        """Answer line after line, until there is no more or the user leaves."""
        if sys.stdin.isatty():
            self.note(f"{COMMANDS}. Ctrl-C stops an answer, Ctrl-D leaves.")
        if not self.prompter.chats:
            self.note(self._about_completion())
        for line in typed_lines():
            if not line.strip():
                continue
            word, _, rest = line.strip().partition(" ")
            if word == "/exit":
                return
            if re.fullmatch(r"/\w+", word):
                self.obey(word, rest.strip())
                continue
            try:
                self.respond(line)
            except PromptTooLong as error:
                self.note(
                    f"That makes {error.tokens:,} tokens, and the model has room for "
                    f"{error.context:,} with its answer. Shorten it, or /reset."
                )
            except UserError as error:
                self.note(error.message)

    def obey(self, word: str, rest: str) -> None:
        """A line that begins with a slash."""
        if word == "/image":
            self.show(rest)
            return
        if word not in ("/reset", "/system"):
            self.note(f"There is no {word}: {COMMANDS}.")
            return
        if word == "/system" and not self.prompter.chats:
            self.note("Without a chat template there is no place for a system message.")
            return
        if word == "/system":
            self.system = rest
        self.reset()
        self.note("A new conversation.")

    def show(self, file: str) -> None:
        """An image for the next line."""
        try:
            require_sight(self.prompter)
            decode(Path(file).expanduser())
        except UserError as error:
            self.note(f"{file}: {error.message}")
            return
        self.waiting.append(file)
        self.note(f"{file} is shown with the next line.")

    def respond(self, line: str) -> None:
        """Print the answer, or the answers side by side, and remember what was said.

        Raises:
            PromptTooLong: There is no room for an answer.
            UserError: The chat template refuses the conversation.
        """
        self.turn += 1
        asked = self.asked(line)
        prompts = [self.prompt(speaker, asked) for speaker in self.speakers]
        self.waiting.clear()
        if len(self.speakers) == 1:
            answers = [self.stream(self.speakers[0], prompts[0])]
        else:
            answers = self.side_by_side(prompts)
        for speaker, answer in zip(self.speakers, answers, strict=True):
            if self.prompter.chats and answer:
                speaker.messages.append(asked)
                speaker.messages.append({"role": "assistant", "content": answer})

    def asked(self, line: str) -> Message:
        """What the user says, with the images that wait to be shown."""
        if not self.waiting:
            return {"role": "user", "content": line}
        images = [{"type": "image", "image": str(Path(f).expanduser())} for f in self.waiting]
        return {"role": "user", "content": [*images, {"type": "text", "text": line}]}

    def prompt(self, speaker: Speaker, asked: Message) -> Prompt:
        """What the next answer follows.

        Raises:
            PromptTooLong: There is no room for an answer.
            UserError: The chat template refuses the conversation.
        """
        if self.prompter.chats:
            prompt = self.prompter.conversation([*speaker.messages, asked])
        else:
            prompt = self.prompter.ask(asked["content"])
        context = context_length(speaker.model.config)
        if room_for(prompt, context, self.max_new_tokens) < 1:
            raise PromptTooLong(len(prompt.ids), context)
        return prompt

    def stream(self, speaker: Speaker, prompt: Prompt) -> str:
        """An answer that is printed as it comes; what there is of it if the user stops it."""

        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        stream, cut = TextStream(self.prompter.tokenizer, write), None
        try:
            if not self.continuation(speaker, prompt, stream).ended:
                cut = "Cut off at the longest answer that --max-new-tokens or the model allows."
        except KeyboardInterrupt:
            cut = "Stopped."
        write("\n")
        answer = stream.text.strip()
        if cut or not answer:
            self.note(cut or "The answer is empty.")
        return answer

    def side_by_side(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer of each speaker, printed in a column of its own; none if the user stops it."""
        table, answers = Table(expand=True), []
        try:
            for speaker, prompt in zip(self.speakers, prompts, strict=True):
                table.add_column(Text(speaker.name), overflow="fold", ratio=1)
                answers.append(self.prompter.answer(self.continuation(speaker, prompt).ids))
        except KeyboardInterrupt:
            self.note("Stopped.")
            return [""] * len(prompts)
        table.add_row(*(Text(shown(answer)) for answer in answers))
        Console(highlight=False).print(table)
        return answers

    def continuation(
        self, speaker: Speaker, prompt: Prompt, stream: TextStream | None = None
    ) -> Continuation:
        """One answer, told to `stream` as it comes."""
        context = context_length(speaker.model.config)
        return generate(
            speaker.model,
            [prompt.ids],
            end_tokens(speaker.model, self.prompter.tokenizer),
            room_for(prompt, context, self.max_new_tokens),
            processors=self.sampling.processors([self.turn]),
            streamer=stream,
            seen=prompt.seen,
        )[0]

    def note(self, text: str) -> None:
        """A line that no model has written; not on stdout, which holds answers alone."""
        self.notes.print(Text(text, style="dim"))

    def _about_completion(self) -> str:
        how = "completed as it stands"
        if self.prompter.write is not None:
            how = f"asked as in training: {self.prompter.write('...')}"
        return f"The model has no chat template. Each line is taken on its own and {how}"


def require_sight(prompter: Prompter) -> None:
    """Refuse images for a model without a processor, or without a template to put them in.

    Raises:
        UserError: It is one.
    """
    if prompter.processor is None or not prompter.chats:
        raise UserError("This model reads no images.", fix="leave --image out")


def typed_lines() -> Iterator[str]:
    """The lines of a terminal, with editing and history, or of whatever else is the input."""
    sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # Windows
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        yield line
