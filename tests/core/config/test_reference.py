"""Every YAML block of the reference is accepted, or refused for the reason that is given here."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "fixtures" / "reference"
DATA, MODEL = (str(REFERENCE / "base" / f"{name}.yaml") for name in ("data", "model"))
ENVIRON = {"WANDB_API_KEY": "key-from-environment", "HF_TOKEN": "token-from-environment"}

# What completes a block: nothing, or all that it lacks to be a whole configuration.
WHOLE = ("complete_llm_peft", "complete_vlm_freezing")
WITHOUT_MODEL = (
    "missing_target_wrong",
    "missing_target_right",
    "invalid_target_wrong",
)

# What the reference itself calls wrong, and a block that only shows a pattern.
WRONG_EXAMPLES = ("missing_target_wrong", "invalid_target_wrong", "target_pattern")

# Blocks with a target that isn't there yet, whose keys nothing can be compared with.
NO_SIGNATURE = ("distributed_nvfsdp",)

# Block -> the line and message of each refusal. A block that isn't here has no problem.
REFUSED = {
    # What the reference itself calls wrong, and a block that only shows a pattern.
    "target_pattern": [(1, "There is no key `component`.")],
    "missing_target_wrong": [(1, "`model` needs a `_target_`.")],
    "invalid_target_wrong": [
        (2, "`nemo_automodel.InvalidClass` is neither registered nor trusted.")
    ],
}


def completed(name: str) -> list[str]:
    """The files that make a whole configuration of a block."""
    file = str(REFERENCE / f"{name}.yaml")
    if name in WHOLE:
        return [file]
    return [DATA, file] if name in WITHOUT_MODEL else [DATA, MODEL, file]


BLOCKS = sorted(file.stem for file in REFERENCE.glob("*.yaml"))


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block, findings, no_torch):
    found = findings(completed(block), ENVIRON)
    refusals = sorted((each.mark.line, each.message) for each in found)
    assert refusals == REFUSED.get(block, [])


@pytest.mark.parametrize("example", ["missing_target", "invalid_target"])
def test_the_right_line_is_the_advice_for_the_wrong_example(example, findings):
    right = (REFERENCE / f"{example}_right.yaml").read_text().splitlines()[1].strip()
    [problem] = findings(completed(f"{example}_wrong"))
    assert right.removeprefix("_target_: ") in problem.hint
