"""What the person at the terminal sees: a plan, live progress, validation, and a closing summary.

With a terminal there is a progress bar; without one, plain lines at a bearable rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from automodel_core.progress import Listener, heard_by
from automodel_core.train.generation import Answers, Question
from automodel_core.train.metrics import StepMetrics

PLAIN_LINES = 25
# Seconds until a preparation is called long, and between its lines where there is no terminal.
FIRST_REPORT, PLAIN_SECONDS = 3.0, 30.0
# What is left of a chat template's answer header once its special tokens are gone.
ANSWER_HEADERS = ("assistant", "model")


class Console:
    """Prints a run.

    Args:
        verbosity: -1 prints only what went wrong; 1 prints every step without a terminal too.
        total_steps: Known once the data is; sets the rate of plain lines.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.rich = RichConsole(quiet=verbosity < 0, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.total_steps: int | None = 0

    def say(self, text: str = "") -> None:
        """One line, above the progress bar if there is one."""
        if self.rich.quiet:  # which would still lay it out
            return
        (self.progress.console if self.progress else self.rich).print(text, markup=False)

    def heading(self, text: str) -> None:
        self.rich.print()
        self.rich.print(text, style="bold", markup=False)

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """A block of `name  value` lines."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.rich.print(f"  {name:<{width}}  {value}", markup=False)

    @contextmanager
    def preparing(self, what: str) -> Iterator[None]:
        """How far `what` is prepared, if that takes long: a bar, or a line now and then."""
        with ExitStack() as shown, heard_by(self._long_preparation(what, shown)):
            yield

    def _long_preparation(self, what: str, shown: ExitStack) -> Listener:
        columns = (TextColumn("{task.description}"), BarColumn(24), TimeRemainingColumn())
        bar = Progress(*columns, console=self.rich, transient=True)
        begun, told = time.monotonic(), 0.0

        def hear(done: str, share: float | None) -> None:
            nonlocal told
            waited = time.monotonic() - begun
            if self.rich.quiet or waited < FIRST_REPORT:
                return
            text = f"{what}: {done}"
            if not self.rich.is_terminal:
                if waited - told >= PLAIN_SECONDS:
                    told = waited
                    self.say(text if share is None else f"{text}, {share:.0%}")
                return
            if not bar.tasks:
                shown.enter_context(bar)
                bar.add_task(text, total=None)
            total = None if share is None else 1.0
            bar.update(bar.tasks[0].id, description=text, completed=share or 0.0, total=total)

        return hear

    @contextmanager
    def training(self, done: int, total: int | None) -> Iterator[None]:
        """Live progress from step `done` on, to `total` if that is known."""
        self.total_steps = total
        if not self.rich.is_terminal or self.rich.quiet:
            yield
            return
        columns = (
            TextColumn("step {task.completed:>4.0f}" + ("" if total is None else f"/{total}")),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.rich, transient=False) as progress:
            self.progress, self.task = progress, progress.add_task("", total=total, figures="")
            progress.update(self.task, completed=done)
            try:
                yield
            finally:
                self.progress = None

    def step(self, metrics: StepMetrics) -> None:
        """Show a finished step."""
        if self.progress:
            self.progress.update(self.task, completed=metrics.step, figures=figures(metrics))
        elif self.verbosity > 0 or self.is_plain_line(metrics.step):
            of = "" if self.total_steps is None else f"/{self.total_steps}"
            self.say(f"step {metrics.step:>4}{of}  {figures(metrics)}")

    def is_plain_line(self, step: int) -> bool:
        if self.total_steps is None:  # 1, 2, ..., 10, 20, ..., 100, 200, ...
            return step % 10 ** (len(str(step)) - 1) == 0
        every = max(self.total_steps // PLAIN_LINES, 1)
        return step == 1 or step == self.total_steps or step % every == 0

    def validation(self, step: int, name: str, loss: float) -> None:
        """Show the loss of a validation set; the only one has no name."""
        self.say(f"step {step:>4}       validation loss {loss:.4f}{f'  ({name})' if name else ''}")

    def answers(
        self, questions: Sequence[Question], before: Answers, after: Answers, shown: int
    ) -> None:
        """Some held-out questions with both answers side by side, and the counts over all."""
        self.heading("Held-out questions, never trained on")
        table = Table(show_lines=True, expand=False)
        for title in ("question", "expected", "before", "after"):
            table.add_column(title, overflow="fold", max_width=44)
        for index, question in enumerate(questions[:shown]):
            answers = (before.texts[index], after.texts[index])
            cells = (tail(question.prompt), question.reference, *answers)
            table.add_row(*(escape(cell) for cell in cells))
        self.rich.print(table)
        total = len(questions)
        for name, count in (
            ("exact match", "exact_matches"),
            ("contains the answer", "containing"),
        ):
            was, now = getattr(before, count), getattr(after, count)
            self.rich.print(f"  {name}: {was}/{total} before, {now}/{total} after", markup=False)


def figures(metrics: StepMetrics) -> str:
    """The numbers of a step on one line."""
    return (
        f"loss {metrics.loss:.4f}  lr {metrics.lr:.2e}  grad norm {metrics.grad_norm:.2f}  "
        f"{metrics.tps:,.0f} supervised tokens/s  {metrics.memory_gib:.1f} GiB"
    )


def tail(prompt: str, width: int = 200) -> str:
    """The last line of a prompt, where the question stands, without the answer's chat header."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1] in ANSWER_HEADERS:
        lines.pop()
    text = lines[-1] if lines else ""
    return text if len(text) <= width else "..." + text[-width:]
