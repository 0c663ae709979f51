"""A conversation in the terminal, with one model or with two side by side."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from automodel_core.answer.loading import context_length
from automodel_core.answer.prompting import Message, Prompter, room_for
from automodel_core.answer.sampling import Sampling
from automodel_core.answer.streaming import TextStream, shown
from automodel_core.errors import UserError
from automodel_core.generation import Continuation, end_tokens, generate

COMMANDS = "/reset forgets the conversation, /system TEXT begins one with TEXT, /exit leaves"


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
    """

    def __init__(
        self,
        speakers: Sequence[Speaker],
        prompter: Prompter,
        sampling: Sampling,
        max_new_tokens: int,
        system: str = "",
    ) -> None:
        self.speakers, self.prompter, self.sampling = speakers, prompter, sampling
        self.max_new_tokens, self.system = max_new_tokens, system
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)
        self.turn = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but for the system's words."""
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

    def respond(self, line: str) -> None:
        """Print the answer, or the answers side by side, and remember what was said.

        Raises:
            PromptTooLong: There is no room for an answer.
            UserError: The chat template refuses the conversation.
        """
        self.turn += 1
        prompts = [self.prompt(speaker, line) for speaker in self.speakers]
        if len(self.speakers) == 1:
            answers = [self.stream(self.speakers[0], prompts[0])]
        else:
            answers = self.side_by_side(prompts)
        for speaker, answer in zip(self.speakers, answers, strict=True):
            if self.prompter.chats and answer:
                speaker.messages.append({"role": "user", "content": line})
                speaker.messages.append({"role": "assistant", "content": answer})

    def prompt(self, speaker: Speaker, line: str) -> list[int]:
        """The tokens that the next answer follows."""
        if self.prompter.chats:
            ids = self.prompter.conversation([*speaker.messages, {"role": "user", "content": line}])
        else:
            ids = self.prompter.ask(line)
        context = context_length(speaker.model.config)
        if room_for(ids, context, self.max_new_tokens) < 1:
            raise PromptTooLong(len(ids), context)
        return ids

    def stream(self, speaker: Speaker, prompt: list[int]) -> str:
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

    def side_by_side(self, prompts: Sequence[list[int]]) -> list[str]:
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
        self, speaker: Speaker, prompt: list[int], stream: TextStream | None = None
    ) -> Continuation:
        """One answer, told to `stream` as it comes."""
        context = context_length(speaker.model.config)
        return generate(
            speaker.model,
            [prompt],
            end_tokens(speaker.model, self.prompter.tokenizer),
            room_for(prompt, context, self.max_new_tokens),
            processors=self.sampling.processors([self.turn]),
            streamer=stream,
        )[0]

    def note(self, text: str) -> None:
        """A line that no model has written; not on stdout, which holds answers alone."""
        self.notes.print(Text(text, style="dim"))

    def _about_completion(self) -> str:
        how = "completed as it stands"
        if self.prompter.write is not None:
            how = f"asked as in training: {self.prompter.write('...')}"
        return f"The model has no chat template. Each line is taken on its own and {how}"


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
