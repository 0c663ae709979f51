"""Whatever is in a file or on the command line: problems, never a traceback."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automodel_core.config.effective import effective_tree, to_yaml
from automodel_core.config.report import ConfigError, render
from automodel_core.errors import UserError
from tests.core.config.test_reference import BLOCKS, ENVIRON, REFERENCE

TEXTS = [(REFERENCE / f"{block}.yaml").read_text() for block in BLOCKS]
WORDS = sorted({word for text in TEXTS for word in text.split()})

often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

yaml_pieces = st.sampled_from(
    [
        *WORDS,
        *"-?:,[]{}#&*!|>'\"%@`~ \n\t$",
        ": ",
        "- ",
        "\n  ",
        "<<: ",
        "&a ",
        "*a",
        "${",
        "}",
        "---",
    ]
)
pieced = st.lists(yaml_pieces, max_size=40).map("".join)


@st.composite
def damaged(draw):
    """A configuration with a few characters replaced, removed or added."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 5))
        text = text[:start] + draw(st.text(max_size=3) | yaml_pieces) + text[stop:]
    return text


@pytest.fixture
def survive(findings, file):
    """Give words to everything that `validate` and `explain` do; any exception but ours fails."""

    def run(words):
        try:
            problems = findings(words, ENVIRON)
        except (ConfigError, UserError):
            return
        for style in ("text", "json", "github"):
            assert isinstance(render(problems, style), str)
            render(problems, style).encode()

    return run


@often
@given(st.text(max_size=200) | pieced | damaged())
def test_text(survive, file, text):
    survive([file(text.encode(errors="surrogatepass"))])


@often
@given(st.binary(max_size=100))
def test_bytes(survive, file, content):
    survive([file(content)])


# What the system can pass as an argument: anything but NUL, undecodable bytes too.
characters = st.characters(exclude_characters="\0", exclude_categories=())
paths = st.lists(
    st.sampled_from(["model", "dataset", "optimizer", "lr", "betas", "0", "1", "seed", "logger",
                     "clip_grad_norm", "max_norm", "wandb", "api_key", "x-a", "_target_", ""])
    | st.text(characters, max_size=4),
    min_size=1,
    max_size=4,
).map(".".join)  # fmt: skip
values = st.text(characters, max_size=10) | pieced
typed = (
    st.builds("{}{}={}".format, st.sampled_from(["", "--"]), paths, values)
    | st.builds("{}{}".format, st.sampled_from(["--", "-", ""]), paths)
    | st.just("--unset")
)


@often
@given(st.lists(typed, max_size=5))
def test_overrides(survive, file, words):
    survive([file(TEXTS[0]), *words])


@often
@given(damaged())
def test_what_is_accepted_can_be_saved_and_read_again(file, text):
    from tests.core.config.conftest import BASE, Read

    environ = {"HF_TOKEN": "a", "WANDB_API_KEY": "b"}
    try:
        first = Read([file(BASE), file(text, "second.yaml")], environ)
    except ConfigError:
        return
    if first.problems:
        return
    config = first.config
    secrets = [config.wandb and config.wandb.api_key]
    secrets += [config.slurm and getattr(config.slurm, key) for key in ("hf_token", "wandb_key")]
    if any(secrets):
        return  # a masked secret is no longer the same
    saved = to_yaml(effective_tree(first.config, first.document))
    assert Read([file(saved)], environ).config == config
