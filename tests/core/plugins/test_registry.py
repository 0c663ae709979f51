"""Entry points become records, each in its state, and no plugin is imported on the way."""

import json
import sys

import pytest

from automodel_core.errors import UserError
from automodel_core.registry import Registry
from automodel_core.sources import find_module

MAKE = "def make():\n    '''Make it.'''\n"


def test_records_come_sorted_by_distribution_and_name(install):
    install("zebra", {"losses": {"b": "zebra:make", "a": "zebra:make"}}, {"zebra": MAKE})
    install("ant", {"losses": {"z": "ant:make"}}, {"ant": MAKE})
    records = Registry.discover().records
    assert records == tuple(sorted(records, key=lambda each: (each.distribution, each.name)))
    names = [(r.distribution, r.name) for r in records if r.distribution in ("ant", "zebra")]
    assert names == [("ant", "z"), ("zebra", "a"), ("zebra", "b")]


def test_discovering_imports_no_plugin(install):
    boom = "raise SystemExit('imported')"
    install("bomb", {"losses": {"bomb": "bomb_module:make"}}, {"bomb_module": boom})
    assert Registry.discover().find("losses", "bomb").state == "ok"
    assert "bomb_module" not in sys.modules


@pytest.mark.parametrize("spelling", ["mine", "losses:mine", "my-plugin/mine"])
def test_a_name_has_three_spellings(install, spelling):
    install("my-plugin", {"losses": {"mine": "mine:make"}}, {"mine": MAKE})
    assert Registry.discover().find("losses", spelling).value == "mine:make"


@pytest.mark.parametrize("blocked", ["my-plugin", "mine", "losses:mine", "my-plugin/mine"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_disabled(install, states, monkeypatch, blocked, by):
    install("my-plugin", {"losses": {"mine": "mine:make"}}, {"mine": MAKE})
    if by == "environment":
        monkeypatch.setenv("AUTOMODEL_DISABLE_PLUGINS", f"other, {blocked}")
    found = states("my-plugin", disabled=[blocked] if by == "argument" else [])
    assert found["mine"] == ("disabled", "you disabled it")


def test_incompatible(install, states):
    install(
        "newer",
        {"losses": {"newer": "newer:make"}},
        {"newer": MAKE},
        requires=("numpy", "automodel_core>=999", 'automodel-core<1; extra == "old"'),
    )
    state, reason = states("newer")["newer"]
    assert state == "incompatible"
    assert reason.startswith("it needs automodel-core>=999, and this is ")


def test_a_compatible_requirement_is_fine(install, states):
    install(
        "fitting",
        {"losses": {"fitting": "fitting:make"}},
        {"fitting": MAKE},
        requires=("automodel-core>=0.1",),
    )
    assert states("fitting")["fitting"] == ("ok", "")


def test_conflict_is_settled_by_naming_the_owner(install, states):
    for name in ("one", "two"):
        install(name, {"losses": {"same": f"{name}_module:make"}}, {f"{name}_module": MAKE})
    assert states("one")["same"] == ("conflict", "two has the same name; write `one/same`")
    registry = Registry.discover()
    with pytest.raises(UserError, match="two has the same name; write `one/same`"):
        registry.find("losses", "same")
    assert registry.find("losses", "two/same").value == "two_module:make"


def test_our_own_names_stay_ours(install, states):
    install("taker", {"losses": {"masked_ce": "taker:make"}}, {"taker": MAKE})
    assert states("taker")["masked_ce"][0] == "conflict"
    registry = Registry.discover()
    assert registry.find("losses", "masked_ce").distribution == "automodel-core"
    assert registry.find("losses", "taker/masked_ce").value == "taker:make"


def test_disabling_one_owner_settles_a_conflict_too(install):
    for name in ("one", "two"):
        install(name, {"losses": {"same": f"{name}_module:make"}}, {f"{name}_module": MAKE})
    assert Registry.discover(disabled=["one"]).find("losses", "same").distribution == "two"


def test_the_same_name_in_two_kinds_is_no_conflict(install):
    groups = {"losses": {"same": "mine:make"}, "datasets": {"same": "mine:make"}}
    install("my-plugin", groups, {"mine": MAKE})
    registry = Registry.discover()
    assert registry.find("datasets", "same").kind == "datasets"
    with pytest.raises(UserError, match="could mean several"):
        registry.find(None, "same")


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"losses": {"x": "gone.away:make"}}, "there is no module gone.away: reinstall my-plugin"),
        ({"losses": {"x": "mine"}}, "mine names a module, not an object in it"),
        (
            {"loss": {"x": "mine:make"}},
            "there is no kind loss; did you mean `losses`?",
        ),
        ({"aliases": {"x": "mine:make"}}, "an alias must be a dotted name"),
        ({"aliases": {"a.b": "mine:make"}}, "no installed plugin registers mine:make"),
    ],
)
def test_broken_by_its_metadata_alone(install, states, groups, reason):
    install("my-plugin", groups, {"mine": MAKE})
    assert next(iter(states("my-plugin").values())) == ("broken", reason)


def test_an_older_copy_further_down_the_path_is_not_listed(install, tmp_path, monkeypatch, states):
    install("my-plugin", {"losses": {"old": "mine:make"}}, {"mine": MAKE})
    newer = tmp_path / "newer" / "my_plugin-2.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 2.0\n")
    (newer / "entry_points.txt").write_text("[automodel.losses]\nnew = mine:make\n")
    monkeypatch.syspath_prepend(str(newer.parent))
    assert set(states("my-plugin")) == {"new"}


def test_close_names_are_offered(install):
    install("my-plugin", {"losses": {"focal": "mine:make"}}, {"mine": MAKE})
    registry = Registry.discover()
    with pytest.raises(UserError) as unknown:
        registry.find("losses", "focall")
    assert unknown.value.message == "No loss is called `focall`."
    assert unknown.value.fix == "did you mean `focal`?"
    with pytest.raises(UserError, match="`focal` is a loss, not an optimizer"):
        registry.find("optimizers", "focal")


def test_an_editable_project_that_announces_more_than_its_metadata_is_noticed(install, tmp_path):
    site = install("growing", {"losses": {"first": "growing:make"}}, {"growing": MAKE})
    project = tmp_path / "growing project"
    project.mkdir()
    url = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (site / "growing-1.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    (project / "pyproject.toml").write_text(
        '[project.entry-points."automodel.losses"]\n'
        'first = "growing:make"\n'
        'second = "growing:make"\n'
    )
    with pytest.raises(UserError) as unknown:
        Registry.discover().find("losses", "second")
    assert unknown.value.fix == (
        "the pyproject.toml of growing has changed since it was installed: "
        f"pip install -e {project}"
    )


def test_a_package_is_looked_for_once_and_one_that_is_installed_later_is_found(
    install, monkeypatch
):
    install("early", {}, {"early_module": ""})
    assert find_module("early_module").file.name == "early_module.py"
    assert find_module("late_module") is None
    install("late", {}, {"late_module": ""})
    assert find_module("late_module").file.name == "late_module.py"
    monkeypatch.setattr("importlib.util.find_spec", None)
    assert find_module("early_module").file.name == "early_module.py"
