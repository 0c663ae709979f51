"""The command line as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_core.cli import COMMANDS, main
from automodel_core.errors import GuardStop, SavedAfterSignal, UserError

ROOT = Path(__file__).parents[3]
QUICKSTART = str(ROOT / "examples" / "quickstart.yaml")
CONFIG = """\
model:
  _target_: causal_lm
  pretrained_model_name_or_path: some/model
dataset:
  _target_: squad
step_scheduler:
  max_steps: 4
"""

# Prints which heavy packages a command has imported, after it has run.
SPY = """\
import sys
from automodel_core.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "transformers", "datasets", "numpy"} & sys.modules.keys()))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write config.yaml into a fresh working directory."""
    monkeypatch.chdir(tmp_path)

    def write(more: str = "") -> str:
        Path("config.yaml").write_text(CONFIG + more)
        return "config.yaml"

    return write


@pytest.fixture
def automodel(capsys):
    """Run a command; returns the exit code, and what it printed and complained."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return (code, *capsys.readouterr())

    return run


# Each of these must be quick, so none may import what is slow.


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["validate", QUICKSTART],
        ["validate", QUICKSTART, "optimizer.lr=many", "--modle.x", "1"],
        ["explain", QUICKSTART],
        ["chat", "--help"],
        ["generate", "--help"],
        ["list-plugins"],
        ["finetune", "llm", "-c", "x.yaml"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words):
    done = subprocess.run([sys.executable, "-c", SPY, *words], capture_output=True, text=True)
    assert done.stdout.endswith(" []\n"), done.stdout + done.stderr


# Prints which packages beside Python's own a command has imported, and how often the collector ran.
WATCH = """\
import gc, sys
before, ran = set(sys.modules), []
from automodel_core.cli import main
gc.callbacks.append(lambda phase, info: ran.append(phase))
main(sys.argv[1:])
gc.callbacks.clear()
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(packages - sys.stdlib_module_names - {"automodel_core"}), len(ran))
"""


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--help"], {"attr", "attrs", "click"}),
        (["list-plugins"], {"attr", "attrs", "click"}),
        (["show", "adamw"], {"attr", "attrs", "click"}),
        (["validate", QUICKSTART], {"attr", "attrs", "click", "ruamel"}),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_an_answer_imports_only_what_it_is_made_of_and_collects_no_garbage(words, needed):
    done = subprocess.run([sys.executable, "-c", WATCH, *words], capture_output=True, text=True)
    *packages, collections = done.stdout.splitlines()[-1].split()
    assert set(packages) == needed
    assert words == ["--help"] or collections == "0"


def test_help_tells_commands_exit_codes_and_environment(automodel):
    code, printed, _ = automodel("--help")
    assert code == 0
    for word in (*COMMANDS, "75", "130", "AUTOMODEL_ALLOW", "AUTOMODEL_DISABLE_PLUGINS"):
        assert word in printed


def test_every_environment_variable_that_is_read_is_in_the_help(automodel):
    sources = "".join(path.read_text() for path in (ROOT / "automodel_core").rglob("*.py"))
    names = {word.strip("\"'`.,:()") for word in sources.split() if "AUTOMODEL_" in word}
    ours = {name for name in names if name.startswith("AUTOMODEL_") and name.isupper()}
    _, printed, _ = automodel("--help")
    assert ours
    assert all(name in printed for name in ours)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(automodel, command):
    code, printed, _ = automodel(command, "--help")
    assert code == 0
    assert printed.startswith(f"Usage: automodel {command} ")


@pytest.mark.parametrize(
    "words",
    [
        ["cfg.yaml"],
        ["finetune", "llm", "-c", "cfg.yaml"],
        ["finetune", "vlm", "--config", "cfg.yaml"],
        ["llm", "finetune", "cfg.yaml"],
    ],
    ids=" ".join,
)
def test_other_ways_to_start_are_answered_with_the_command(automodel, words):
    code, _, complaint = automodel(*words)
    assert code == 2
    assert "write: automodel run cfg.yaml" in complaint


def test_an_override_is_kept_in_the_advice(automodel):
    _, _, complaint = automodel("cfg.yaml", "optimizer.lr=1e-5")
    assert "write: automodel run cfg.yaml optimizer.lr=1e-5" in complaint


@pytest.mark.parametrize("words", [["valdate"], ["run", "--resume"], ["runs", "a", "b"]])
def test_what_is_no_command_is_bad_input(automodel, words):
    code, _, complaint = automodel(*words)
    assert code == 2
    assert complaint.strip()


@pytest.mark.parametrize("command", ["run", "validate", "explain"])
def test_no_file(automodel, command):
    code, _, complaint = automodel(command)
    assert code == 2
    assert "name a YAML file" in complaint


def test_the_module_is_the_program(config):
    command = [sys.executable, "-m", "automodel_core", "validate", config()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "No problem found.\n")
    version = subprocess.run([*command[:3], "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("automodel, version ")


# validate


BAD = "lr_scheduler:\n  warmup: 5\noptimizer: {_target_: sgd, betas: [0.9, 0.95]}\n"


def test_validate_tells_everything_at_once(automodel, config, snapshot):
    code, printed, _ = automodel("validate", config(BAD), "compile=always", "dataset.splt=train")
    assert code == 2
    assert printed == snapshot


def test_validate_as_json(automodel, config):
    code, printed, _ = automodel("validate", "--format", "json", config(BAD))
    assert code == 2
    first, second = json.loads(printed)
    assert (first["line"], first["column"], first["severity"]) == (9, 3, "error")
    assert "betas" in second["message"]
    assert json.loads(automodel("validate", "--format=json", config())[1]) == []


def test_validate_as_github_annotations(automodel, config):
    code, printed, _ = automodel("validate", "--format", "github", config(BAD))
    assert code == 2
    assert printed.startswith("::error file=config.yaml,line=9,col=3::There is no key `warmup`")


@pytest.mark.parametrize("style", ["json", "github"])
def test_a_broken_file_is_reported_in_the_format_that_was_asked_for(automodel, config, style):
    code, printed, _ = automodel("validate", "--format", style, config("a: [\n"))
    assert code == 2
    assert printed.startswith("[" if style == "json" else "::error file=config.yaml")


def test_validate_warns_of_unset_variables_and_run_refuses(automodel, config, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    file = config("clip_grad_norm: ${NOT_SET}\noptimizer: {lr: '${NOT_SET}'}\n")
    code, printed, _ = automodel("validate", file)
    assert code == 0
    assert printed.count("warning: The environment variable NOT_SET is not set.") == 2
    code, _, complaint = automodel("run", file)
    assert code == 2
    assert complaint.count("config.yaml:") == 2


def test_a_variable_that_is_set_is_judged_and_not_shown(automodel, config, monkeypatch):
    monkeypatch.setenv("RATE", "hunter2")
    code, printed, _ = automodel("validate", config("optimizer: {lr: '${RATE}'}\n"))
    assert code == 2
    assert "config.yaml:8:17: `lr` takes" in printed
    assert "hunter2" not in printed


def test_validate_with_imports(automodel, config):
    assert automodel("validate", "--import", config())[0] == 0


# explain


def test_explain_refuses_what_run_would(automodel, config):
    code, _, complaint = automodel("explain", config(BAD))
    assert code == 2
    assert "did you mean `warmup_steps`?" in complaint


# run: how it ends


@pytest.fixture
def ends_with(monkeypatch, automodel, config):
    """Run with training replaced by something that raises; returns as `automodel` does."""
    from automodel_core.train import build

    def run(error: BaseException, more: str = "") -> tuple[int, str, str]:
        def fine_tune(config, context):
            raise error

        monkeypatch.setattr(build, "fine_tune", fine_tune)
        return automodel("run", config(more))

    return run


ENDS = {
    "bad input": (UserError("No such split.", fix="write train", path=("dataset", "split")), 2),
    "guard": (GuardStop("non_finite", "The loss is NaN.", fix="lower the rate"), 3),
    "signal": (SavedAfterSignal("Saved. Go on with: automodel run config.yaml"), 75),
    "second signal": (SavedAfterSignal("Not saved.", 130), 130),
    "interrupt": (KeyboardInterrupt(), 130),
    "bug": (ZeroDivisionError("oops"), 1),
}


@pytest.mark.parametrize("case", ENDS)
def test_exit_codes(case, ends_with):
    error, expected = ENDS[case]
    code, _, complaint = ends_with(error)
    assert code == expected
    assert ("Traceback" in complaint) == (case == "bug")


def test_an_error_of_a_plugin_names_the_line(ends_with, snapshot):
    assert ends_with(ENDS["bad input"][0])[2] == snapshot


@pytest.mark.parametrize("case", ["bad input", "guard", "bug"])
def test_what_training_says_is_redacted(case, ends_with, monkeypatch):
    monkeypatch.setenv("PLACE", "hunter2")
    said = {
        "bad input": UserError("Nothing at hunter2."),
        "guard": GuardStop("g", "Nothing at hunter2."),
        "bug": ValueError("Nothing at hunter2."),
    }
    _, _, complaint = ends_with(said[case], "x-place: ${PLACE}\n")
    assert "Nothing at ${PLACE}." in complaint
    assert "hunter2" not in complaint


def test_the_run_is_told_how_to_repeat_itself(monkeypatch, automodel, config):
    from automodel_core.train import build

    told = []
    monkeypatch.setattr(build, "fine_tune", lambda config, context: told.append(context))
    file = config("wandb: {enable: false}\n")
    words = ["--wandb.api_key", "hunter2", "--fresh", "x-note=two words", "-q"]
    assert automodel("run", file, *words)[0] == 0
    [context] = told
    assert context.command == "automodel run config.yaml --wandb.api_key '***' 'x-note=two words'"
    assert (context.fresh, context.verbosity, context.resume) == (True, -1, "latest")
    assert "hunter2" not in context.effective_yaml


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m automodel_core explain {QUICKSTART} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "model:\n"
    assert "Traceback" not in done.stderr
