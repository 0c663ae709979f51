"""The command line. A command is a module, imported when called: `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import click

from automodel_core.cli.collecting import uncollected
from automodel_core.config.report import ConfigError, render, render_user_error
from automodel_core.errors import BAD_INPUT, FAILED, INTERRUPTED, UserError
from automodel_core.telling import is_told, tell

# Command -> what it does and where it is: `module:function`.
COMMANDS = {
    "run": ("Train, on every GPU that there is.", "run:run"),
    "validate": (
        "Check a configuration: every mistake at once, with its line.",
        "validate:validate",
    ),
    "explain": (
        "Print the effective configuration and where each value came from.",
        "explain:explain",
    ),
    "data": (
        "What the model will see of the data, and what is wrong with it: data show.",
        "data:data",
    ),
    "bench": (
        "How fast a configuration trains here: tokens/s, MFU, memory, waits.",
        "bench:bench",
    ),
    "doctor": (
        "What a bug report needs of this machine; with a file, checks that it can run here.",
        "doctor:doctor",
    ),
    "chat": ("Talk to a model, a run or an adapter in the terminal.", "chat:chat"),
    "generate": ("Answer a file of prompts.", "generate:generate"),
    "list-plugins": ("What is installed, by whom, in what state.", "list_plugins:list_plugins"),
    "show": ("One plugin: signature, documentation, an example block.", "show:show"),
    "runs": ("The runs in a folder, how far each has come, how to go on.", "runs:runs"),
    "merge": ("Make one model of an adapter and its base.", "merge:merge"),
    "export": ("Write a whole model in another dtype or shard size.", "export:export"),
    "diff": ("Why two runs are not the same.", "diff:diff"),
}

# These print an answer and leave nothing behind that has to be closed.
AT_ONCE = ("validate", "list-plugins", "show")

EPILOG = """\b
Exit codes:
  0   done
  1   failed while running, or a bug
  2   bad input; nothing was started
  3   a guard stopped the run
  4   a rank had stopped, or ranks waited for each other; the watchdog says which
  75  saved after a signal; run the same command again to go on
  130 interrupted for the third time, unsaved
\b
Environment:
  AUTOMODEL_ALLOW            names that a YAML file may use besides the installed plugins
  AUTOMODEL_DISABLE_PLUGINS  plugins to leave out, separated by commas
  AUTOMODEL_LAUNCH           set by launchers: which launch it is, however often it begins again
"""


class Commands(click.Group):
    """Knows the commands by name alone, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, function = COMMANDS[name][1].partition(":")
        return getattr(importlib.import_module(f"automodel_core.cli.{module}"), function)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (about, _) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        if args[0] not in COMMANDS and (right := meant(args)):
            raise UserError(f"`{args[0]}` is not a command.", fix=f"write: {right}")
        return super().resolve_command(ctx, args)


def meant(arguments: Sequence[str]) -> str | None:
    """The command that somebody meant who left it out or knows another program's."""
    words = [each for each in arguments if each not in ("finetune", "pretrain", "llm", "vlm")]
    words = [each for each in words if each not in ("-c", "--config")]
    if words and words[0].endswith((".yaml", ".yml")):
        return f"automodel run {' '.join(words)}"
    return None


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="automodel-core", prog_name="automodel")
def cli() -> None:
    """Fine-tune Hugging Face models from one YAML file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. The context's `obj` is what was typed.

    Args:
        arguments: What was typed after the program's name; the process's own if left out.
    """
    # Threads that spin while they wait cost ten times the work on a busy machine. OpenMP reads
    # this when torch is imported, which is later than here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        with uncollected() if words and words[0] in AT_ONCE else nullcontext():
            code = cli.main(words, prog_name="automodel", standalone_mode=False, obj=words)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        if not is_told():
            error.show()
        return BAD_INPUT
    except ConfigError as error:
        tell(render(error.problems))
        return BAD_INPUT
    except UserError as error:
        tell(render_user_error(error, lambda path: None))
        return BAD_INPUT
    except KeyboardInterrupt:
        tell("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # whoever read us has gone; nothing is left to flush
        return FAILED


def script() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
