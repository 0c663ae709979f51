"""A YAML file from a stranger cannot reach anything that nobody trusted."""

import pytest

from automodel_core.config.schema import Slot, Target
from automodel_core.errors import UserError
from automodel_core.registry import Registry
from automodel_core.targets import Targets
from automodel_core.trust import Trust

ATTACKS = [
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "eval",
    "importlib.import_module",
    "runpy.run_path",
    "functools.partial",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "torch.os.system",
    "torch.utils.cpp_extension.load",
    "torch.optim.adam.torch.os.system",
    "torch.optim.adam.torch.load",
    "torch.optim.lr_scheduler.partial",
    "torch.optim.Adam.__init__",
    "torch.optim.Adam.__init__.__globals__",
    "torch.optim.__builtins__.eval",
    "torch.nn.os.system",
    "torch.nn.modules.module.functools.partial",
    "torch.nn.modules.module.torch.load",
    "torch.nn.attention._fa3.register_flash_attention_fa3",
    "torch.nn.functional.conv2d",
    "torch.nn.Embedding.from_pretrained",
    "torchdata.stateful_dataloader.stateful_dataloader.os.system",
    "transformers.utils.hub.os.system",
    "transformers.dynamic_module_utils.get_class_from_dynamic_module",
    "transformers.pipeline",
    "transformers.Trainer",
    "transformers.models.llama.modeling_llama.torch.load",
    "transformers.Os.system",
    "transformers.OsConfig.system",
    "transformers.GenerationConfig",
    "transformers.AutoModelForCausalLM.from_pretrained",
    "transformers.PreTrainedModel",
    "datasets.load_dataset",
    "automodel_core.train.rng.torch.load",
    "automodel_core.targets.importlib.import_module",
    "evil.py:run",
    "/tmp/evil.py:run",
    "./evil.run",
    "torch.optim..Adam",
    "torch.optim.Adam ",
    "torch.optim.Adam\n",
    "\uff4fs.system",
    "os/system",
    "losses:os.system",
    "",
]

SLOTS = [None, Slot("optimizers", use="partial", given=("params",)), Slot("datasets")]


@pytest.mark.parametrize("slot", SLOTS, ids=["nested", "optimizer", "dataset"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_before_and_at_loading(name, slot, tmp_path):
    canary = tmp_path / "canary"
    targets = Targets(Registry.discover(), Trust.from_environment())
    arguments = {"command": f"touch {canary}", "args": f"touch {canary}", "shell": True}
    target = Target(name, slot.kind if slot else None, arguments, ("section",))
    (finding, *_) = targets._check(target, slot)
    assert finding.path == ("section", "_target_")
    for use in (targets.load, lambda t: targets.build(t, {}), lambda t: targets.bind(t, {})):
        with pytest.raises(UserError) as refused:
            use(target)
        assert refused.value.path == ("section", "_target_")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
        "torch.nn.CrossEntropyLoss",
        "torchdata.stateful_dataloader.StatefulDataLoader",
        "transformers.LlamaConfig",
        "transformers.AutoConfig.from_pretrained",
        "transformers.BitsAndBytesConfig",
    ],
)
def test_trusted_names_resolve_and_load(name, check):
    targets = Targets(Registry.discover(), Trust.from_environment())
    assert callable(targets.load(Target(name)))


def test_an_object_that_does_not_say_where_it_is_from_is_refused():
    targets = Targets(Registry.discover(), Trust.from_environment(["torch.nn.functional."]))
    with pytest.raises(UserError, match=r"says where it is defined|is really"):
        targets.load(Target("torch.nn.functional.conv2d"))


def test_a_transformers_model_is_refused_with_what_to_write_instead(check):
    (finding,) = check("transformers.AutoModelForCausalLM.from_pretrained", Slot("models"))
    assert finding.hint.startswith("write one that waits: causal_lm, ")


def test_a_kernel_from_the_hub_needs_the_command_line_too(check):
    (finding,) = check("transformers.LlamaConfig", attn_implementation="somebody/kernel")
    assert finding.message == "This would run an attention kernel fetched from the Hub."
    assert check("transformers.LlamaConfig", attn_implementation="sdpa") == []


def test_the_refusal_prints_the_flag(check):
    (finding,) = check("my_package.losses.Focal")
    assert finding.message == "`my_package.losses.Focal` is neither registered nor trusted."
    assert finding.hint == "if you trust it: --allow my_package.losses.Focal"


def test_a_re_export_from_elsewhere_is_refused_by_its_true_name(install, check):
    install("allowed", {}, {"allowed/__init__": "from shutil import rmtree as clean\n"})
    (finding,) = check("allowed.clean", allow=["allowed."])
    assert finding.message == "`allowed.clean` is really `shutil.rmtree`, which is not trusted."


def test_what_no_source_shows_is_refused_when_it_is_loaded(install, check):
    source = "globals()['run'] = __import__('os').system\ndef __getattr__(name): ...\n"
    install("sneaky", {}, {"sneaky/__init__": source})
    assert check("sneaky.run", allow=["sneaky."]) == []
    targets = Targets(Registry.discover(), Trust.from_environment(["sneaky."]))
    with pytest.raises(UserError, match=r"is really `posix\.system`"):
        targets.load(Target("sneaky.run"))


def test_a_name_is_refused_before_its_module_is_imported(install, tmp_path):
    canary = tmp_path / "canary"
    install("bystander", {}, {"bystander": f"open({str(canary)!r}, 'w')\ndef make(): ...\n"})
    targets = Targets(Registry.discover(), Trust.from_environment())
    with pytest.raises(UserError):
        targets.load(Target("bystander.make"))
    assert not canary.exists()


@pytest.mark.parametrize(
    "alias",
    [
        "torch.optim.AdamW",
        "torchdata.stateful_dataloader.StatefulDataLoader",
        "transformers.AutoConfig.from_pretrained",
        "torch.nn.modules.loss.CrossEntropyLoss",
    ],
)
def test_an_alias_may_not_hide_a_trusted_name(install, states, check, alias):
    install(
        "hostile",
        {"optimizers": {"evil": "evil:make"}, "aliases": {alias: "evil:make"}},
        {"evil": "def make(params): raise SystemExit('executed')\n"},
    )
    state, reason = states("hostile")[alias]
    assert (state, reason) == ("broken", "an alias may not hide a name that is trusted as it is")
    targets = Targets(Registry.discover(), Trust.from_environment())
    assert targets.resolve(Target(alias)).dotted == alias


def test_an_alias_may_not_hide_what_the_user_allowed(install, check):
    install("mine", {}, {"mine": "def make(): ...\n"})
    install(
        "hostile",
        {"losses": {"evil": "evil:make"}, "aliases": {"mine.make": "evil:make"}},
        {"evil": "def make(): ...\n"},
    )
    targets = Targets(Registry.discover(), Trust.from_environment(["mine."]))
    assert targets.resolve(Target("mine.make")).dotted == "mine.make"


def test_allowing_by_flag_environment_and_project_file(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.automodel]\nallow = ["from_project."]\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("AUTOMODEL_ALLOW", "from_variable., from.variable.Too")
    trust = Trust.from_environment(["from_flag."])
    assert [(each.prefix, each.source) for each in trust.allowed] == [
        ("from_flag", "--allow"),
        ("from_variable", "AUTOMODEL_ALLOW"),
        ("from.variable.Too", "AUTOMODEL_ALLOW"),
        ("from_project", str(tmp_path / "pyproject.toml")),
    ]
    assert trust.permits("from_flag.a.b")
    assert trust.permits("from.variable.Too")
    assert not trust.permits("from.variable.Other")
    assert not trust.permits("from_flagged.a")


def test_another_users_project_file_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.automodel]\nallow = ["from_project."]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert Trust.from_environment().allowed == ()


@pytest.mark.parametrize("text", ["allow = 3", "allow = [3]", 'allow = ["*"]', "allow = ["])
def test_a_bad_project_file_is_a_clear_error(monkeypatch, tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(f"[tool.automodel]\n{text}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pyproject\.toml"):
        Trust.from_environment()


@pytest.mark.parametrize("text", ["", ".", "*", "a.*", "a..b", "a b"])
def test_a_flag_that_is_no_name_is_refused(text):
    with pytest.raises(UserError, match="--allow"):
        Trust.from_environment([text])


def test_remote_code_needs_the_command_line_too(check):
    name = "transformers.AutoConfig.from_pretrained"
    findings = check(name, pretrained_model_name_or_path="x", trust_remote_code=True)
    assert [each.path for each in findings] == [("section", "trust_remote_code")]
    findings = check(name, pretrained_model_name_or_path="x", kwargs={"trust_remote_code": "yes"})
    assert [each.path for each in findings] == [("section", "kwargs", "trust_remote_code")]
    assert check(name, pretrained_model_name_or_path="x", trust_remote_code=False) == []
    targets = Targets(Registry.discover(), Trust.from_environment())
    with pytest.raises(UserError, match="run code from the model's repository"):
        targets.build(Target(name, arguments={"trust_remote_code": True}), {})
