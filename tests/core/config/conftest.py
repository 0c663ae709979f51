"""A text, as a file, through everything that `validate` does; in this process and without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from automodel_core.cli.loading import load
from automodel_core.config.document import Document
from automodel_core.config.overrides import apply_overrides, split_arguments
from automodel_core.config.reading import load_files
from automodel_core.config.report import ConfigError, Problem, render
from automodel_core.config.schema import RunConfig
from automodel_core.config.structure import structure

BASE = """\
model:
  _target_: causal_lm
  pretrained_model_name_or_path: some/model
dataset:
  _target_: squad
step_scheduler:
  max_steps: 4
"""


class Read:
    """What came of reading and structuring, without asking the targets.

    Attributes:
        document: What was written.
        config: What it means.
        problems: What is wrong with it.
    """

    def __init__(
        self, words: list[str], environ: Mapping[str, str] | None = None, strict: bool = True
    ) -> None:
        files, overrides = split_arguments(words)
        self.document: Document = load_files(files)
        apply_overrides(self.document, overrides)
        self.config: RunConfig
        self.problems: list[Problem]
        self.config, self.problems = structure(self.document, environ or {}, strict=strict)

    @property
    def shown(self) -> str:
        return render(self.problems)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write `config.yaml` (or another) into a fresh working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "config.yaml") -> str:
        content = text.encode() if isinstance(text, str) else text
        Path(name).write_bytes(content)
        return name

    return write


@pytest.fixture
def read(file):
    """Structure BASE and a text after it, with overrides; returns a Read."""

    def run(text: str = "", *words: str, base: str = BASE, **options) -> Read:
        return Read([file(base + text), *words], **options)

    return run


@pytest.fixture
def refusal(read):
    """Like `read`, for texts with problems; returns them as a user sees them."""

    def run(text: str = "", *words: str, **options) -> str:
        try:
            result = read(text, *words, **options)
        except ConfigError as error:
            return render(error.problems)
        assert result.problems, "nothing was wrong"
        return result.shown

    return run


@pytest.fixture
def findings():
    """Every problem that `validate` finds in some files, those of the targets included."""

    def run(words: list[str], environ: Mapping[str, str] | None = None) -> list[Problem]:
        try:
            return load(words, strict=True, environ=environ or {}).problems
        except ConfigError as error:
            return error.problems

    return run


@pytest.fixture
def no_torch(monkeypatch):
    """Fails if the test imports torch or transformers, whatever other tests have imported."""
    heavy = ("torch", "transformers")
    for name in heavy:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    assert not [name for name in heavy if name in sys.modules]
