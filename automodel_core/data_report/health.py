"""Faults that spoil what a fine-tune learns, each with a name; most runs never look for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import attrs
import numpy as np
from transformers import PreTrainedTokenizerBase

from automodel_core.data_report.documents import Document, Row, Span
from automodel_core.data_report.template import Surroundings, surroundings
from automodel_core.train.samples import Sources

EMPTY_THOUGHT = re.compile(r"<(think|thinking|reasoning)>\s*</\1>")
# So many tokens before an answer are looked at for the header.
LOOK_BACK = 24
HISTOGRAM = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@attrs.frozen
class Fault:
    """Something that is probably not what was wanted.

    Attributes:
        name: A fixed word, such as `no_end`.
        count: How many of what was examined have it.
        of: What was counted: documents, answers or rows.
        message: What it is and what follows from it.
        documents: The first few that have it, by their number among the examined.
        severity: An error is never right; a warning may be.
    """

    name: str
    count: int
    of: str
    message: str
    documents: tuple[int, ...] = ()
    severity: Literal["error", "warning"] = "warning"


@attrs.frozen
class Share:
    """How much of some documents is learned.

    Attributes:
        documents: Their number.
        tokens: Real tokens in them; `supervised` of them learned.
    """

    documents: int
    tokens: int
    supervised: int

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Share:
        return cls(
            len(documents),
            sum(len(each.ids) for each in documents),
            sum(int(each.supervised.sum()) for each in documents),
        )

    @property
    def share(self) -> float:
        """The part of the real tokens that is learned."""
        return self.supervised / self.tokens if self.tokens else 0.0


@attrs.frozen
class Health(Share):
    """A data set in numbers.

    Attributes:
        rows: Examined rows of batches.
        pads: Tokens in them that are none.
        lengths: Documents by the power of two that their tokens don't exceed.
        ends: Answers that end with a learned end token, and all answers.
        faults: What is wrong.
        sources: What is learned of each source of mixed data; empty for other data.
    """

    rows: int
    pads: int
    lengths: dict[str, int]
    ends: tuple[int, int]
    faults: tuple[Fault, ...]
    sources: dict[str, Share]


@attrs.frozen(eq=False)
class Examined:
    """What the checks look at.

    Attributes:
        known: Tokens that the model embeds.
        limit: At this length samples were cut; None if it can't be told.
        ends: The tokens that end an answer.
    """

    rows: Sequence[Row]
    documents: Sequence[Document]
    tokenizer: PreTrainedTokenizerBase
    around: Surroundings
    known: int
    limit: int | None
    ends: frozenset[int]

    def text(self, document: Document, start: int, stop: int) -> str:
        return self.tokenizer.decode(document.ids[max(0, start) : stop])


def examine(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    known: int,
    sources: Sources,
    limit: int | None = None,
) -> Health:
    """Look through rows of collated batches.

    Args:
        rows: As the model will be given them.
        tokenizer: The run's.
        known: Tokens that the model embeds.
        sources: Those of the data set.
        limit: Tokens in the longest sample that the data set may give.
    """
    around = surroundings(tokenizer)
    documents = [each for row in rows for each in row.documents]
    lengths = [len(each.ids) for each in documents]
    if limit is None and lengths and lengths.count(max(lengths)) > 1:
        limit = max(lengths)
    seen = Examined(rows, documents, tokenizer, around, known, limit, _ends(tokenizer, around))
    answers = [(each, span) for each in documents for span in each.spans()]
    return Health(
        **attrs.asdict(Share.of(documents)),
        rows=len(rows),
        pads=sum(row.pads for row in rows),
        lengths=_histogram(lengths),
        ends=(sum(_ended(seen, *each) for each in answers), len(answers)),
        faults=tuple(fault for check in CHECKS if (fault := check(seen)) is not None),
        sources={
            name: Share.of([each for each in documents if sources.of_sample(each.sample) == name])
            for name in sources.names
        },
    )


def _histogram(lengths: Sequence[int]) -> dict[str, int]:
    edges = np.searchsorted(HISTOGRAM, lengths)
    counts = Counter(edges.tolist())
    names = [*(f"<= {edge:,}" for edge in HISTOGRAM), f"> {HISTOGRAM[-1]:,}"]
    return {names[edge]: counts[edge] for edge in sorted(counts)}


def _ends(tokenizer: PreTrainedTokenizerBase, around: Surroundings) -> frozenset[int]:
    """The tokens that end an answer."""
    ids = tokenizer(around.end, add_special_tokens=False)["input_ids"] if around.end else []
    return frozenset(each for each in (tokenizer.eos_token_id, *ids[:1]) if each is not None)


def _ended(seen: Examined, document: Document, span: Span) -> bool:
    """Whether the last learned token, white space aside, ends the answer."""
    last = document.ids[max(span[0], span[1] - 3) : span[1]]
    return any(int(token) in seen.ends for token in last)


def _whole(document: Document) -> bool:
    """Whether all is learned, as in continued pretraining."""
    return bool(document.supervised[1:].all())


def _fault(
    name: str, found: Sequence[int], of: str, message: str, severity: str = "warning"
) -> Fault | None:
    if not found:
        return None
    return Fault(name, len(found), of, message, tuple(dict.fromkeys(found[:5])), severity)


def _of_documents(
    seen: Examined, fits: Callable[[Document], bool], name: str, message: str, severity="warning"
) -> Fault | None:
    found = [number for number, each in enumerate(seen.documents) if fits(each)]
    return _fault(name, found, "documents", message, severity)


def _answers(seen: Examined) -> Iterator[tuple[int, Document, Span]]:
    for number, document in enumerate(seen.documents):
        if not _whole(document):
            for span in document.spans():
                yield number, document, span


def unsupervised(seen: Examined) -> Fault | None:
    """Nothing of it is learned."""
    return _of_documents(
        seen,
        lambda each: not each.supervised.any(),
        "unsupervised",
        "Nothing of them is learned: every label is masked. They only cost time.",
    )


def no_end(seen: Examined) -> Fault | None:
    """The model isn't taught to stop."""
    found = [
        number
        for number, document, span in _answers(seen)
        if not _ended(seen, document, span) and not _at_limit(seen, document, span)
    ]
    pad = seen.tokenizer.pad_token_id
    because = (
        " The pad token is the end token here: a collator that masks pads by their token masks it."
        if pad is not None and pad == seen.tokenizer.eos_token_id
        else ""
    )
    return _fault(
        "no_end",
        found,
        "answers",
        f"No end token is learned behind them, so the model isn't taught to stop.{because}",
    )


def cut(seen: Examined) -> Fault | None:
    """Answers that the length limit ended."""
    found = [
        number
        for number, document, span in _answers(seen)
        if not _ended(seen, document, span) and _at_limit(seen, document, span)
    ]
    return _fault(
        "cut",
        found,
        "answers",
        "They end in the middle, where their sample reaches the length limit: raise it, or leave "
        "long samples out.",
    )


def _at_limit(seen: Examined, document: Document, span: Span) -> bool:
    return seen.limit is not None and span[1] == len(document.ids) >= seen.limit


def wrong_role(seen: Examined) -> Fault | None:
    """What the user says is learned."""
    if not seen.around.user or seen.around.user == seen.around.assistant:
        return None
    found = [
        number
        for number, document, (start, _) in _answers(seen)
        if seen.text(document, start - LOOK_BACK, start).rstrip().endswith(seen.around.user)
    ]
    return _fault(
        "wrong_role",
        found,
        "answers",
        "They stand behind the header of the user: roles are swapped, or misnamed.",
    )


def headers(seen: Examined) -> Fault | None:
    """The header of a turn is learned, which the model never has to write."""
    if not seen.around.assistant:
        return None
    return _of_documents(
        seen,
        lambda each: any(
            seen.around.assistant in seen.text(each, start, stop) for start, stop in each.spans()
        ),
        "headers",
        "The header before what the assistant says is learned, and with it perhaps all that the "
        "user says: the mask doesn't tell them apart.",
    )


def empty_thought(seen: Examined) -> Fault | None:
    """`<think></think>` teaches a model not to think."""
    return _of_documents(
        seen,
        lambda each: any(EMPTY_THOUGHT.search(seen.text(each, *span)) for span in each.spans()),
        "empty_thought",
        "An empty thought is learned, which teaches the model not to think.",
    )


def empty_answer(seen: Examined) -> Fault | None:
    """Only the end token is learned."""
    found = [
        number
        for number, document, (start, stop) in _answers(seen)
        if all(
            int(token) in seen.ends or not seen.tokenizer.decode([int(token)]).strip()
            for token in document.ids[start:stop]
        )
    ]
    return _fault("empty_answer", found, "answers", "Nothing but an end token is learned of them.")


def double_bos(seen: Examined) -> Fault | None:
    """BOS twice: the tokenizer adds one to the template's."""
    bos = seen.tokenizer.bos_token_id
    if bos is None or bos == seen.tokenizer.eos_token_id:
        return None
    return _of_documents(
        seen,
        lambda each: bool((each.ids[:2] == bos).sum() == 2),
        "double_bos",
        "They begin with BOS twice; the model has only ever seen one.",
    )


def split_markers(seen: Examined) -> Fault | None:
    """The template's markers are no tokens: it is another model's."""
    split = [
        marker
        for marker in seen.around.markers
        if len(seen.tokenizer(marker, add_special_tokens=False)["input_ids"]) > 1
    ]
    if not split:
        return None
    return Fault(
        "split_markers",
        len(split),
        "markers of the chat template",
        f"The tokenizer splits {', '.join(split[:4])} into pieces: the template belongs to another "
        "model, whose turns this one has never seen.",
    )


def unknown_tokens(seen: Examined) -> Fault | None:
    """Tokens that mean nothing to this model."""
    unk = seen.tokenizer.unk_token_id
    return _of_documents(
        seen,
        lambda each: unk is not None and bool((each.ids == unk).any()),
        "unknown_tokens",
        "They hold the tokenizer's unknown token: what was there is lost.",
    )


def beyond_vocabulary(seen: Examined) -> Fault | None:
    """Tokens that the model doesn't embed."""
    return _of_documents(
        seen,
        lambda each: bool((each.ids >= seen.known).any()),
        "beyond_vocabulary",
        f"They hold tokens that the model doesn't embed; it knows {seen.known:,}.",
        "error",
    )


def broken_text(seen: Examined) -> Fault | None:
    """Text that was read in the wrong encoding."""
    return _of_documents(
        seen,
        lambda each: "\ufffd" in seen.text(each, 0, len(each.ids)).strip("\ufffd"),
        "broken_text",
        "They hold U+FFFD, which stands for bytes that are no text: the file was read in a wrong "
        "encoding, or cut inside a character.",
    )


def learned_pads(seen: Examined) -> Fault | None:
    """Padding is learned."""
    found = [number for number, row in enumerate(seen.rows) if row.learned_pads]
    return _fault("learned_pads", found, "rows", "Their padding is learned.", "error")


def duplicates(seen: Examined) -> Fault | None:
    """The same sample more than once."""
    first: dict[bytes, int] = {}
    found = [
        number
        for number, each in enumerate(seen.documents)
        if first.setdefault(each.ids.tobytes(), number) != number
    ]
    return _fault("duplicates", found, "documents", "They are the same as one before.")


CHECKS = (
    unsupervised, no_end, cut, wrong_role, headers, empty_thought, empty_answer, double_bos,
    split_markers, unknown_tokens, beyond_vocabulary, broken_text, learned_pads, duplicates,
)  # fmt: skip
