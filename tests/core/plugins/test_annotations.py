"""YAML values against annotations: strict where certain, silent where not."""

import pytest

from automodel_core.annotations import fits, readable, wants_tuple


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1, -1], [True, 1.0, "1", None, [1], {}]),
        ("float", [1, 1.5], [True, "1e-5", None, float("nan"), float("inf")]),
        ("bool", [True], [1, 0, "false", None]),
        ("str", ["x", ""], [1, True, None, ["x"]]),
        ("None", [None], [0, "none"]),
        ("int | None", [1, None], ["1", True]),
        ("Optional[int]", [1, None], ["1"]),
        ("typing.Union[int, str]", [1, "x"], [1.5, None]),
        ("Literal['a', 'b']", ["a"], ["c", None]),
        ("Literal[1, 2]", [1], [True, 1.0]),
        ("list[int]", [[], [1]], [1, ["x"], {}]),
        ("Sequence[str] | None", [["x"], None], ["x", [1]]),
        ("tuple[float, float]", [[0.9, 1]], [[0.9], [1, 2, 3], 1, ["x", 1]]),
        ("tuple[int, ...]", [[], [1, 2]], [["x"]]),
        ("dict[str, int]", [{"a": 1}], [{"a": "x"}, [1]]),
        ("Mapping[str, Any]", [{"a": object()}], [1]),
        ("str | Path", ["x"], [1]),
        ("os.PathLike[str] | str", ["x"], []),
        ("float | Tensor", [1.0], ["x", True]),
        ("'int | None'", [1, None], ["x"]),
        ("Annotated[int, 'doc']", [1], ["x"]),
        ("Any", [1, None, "x", []], []),
        ("SomethingElse", [1, "x", None], []),
        ("list[SomethingElse]", [[1, "x"]], [1]),
        ("not even (python", [1], []),
    ],
)
def test_fits(annotation, good, bad):
    for value in good:
        assert fits(value, annotation, None, None), value
    for value in bad:
        assert not fits(value, annotation, None, None), value


def test_a_default_of_none_admits_none():
    assert fits(None, "int", "None", None)


def test_what_yaml_cannot_write_is_not_judged():
    assert fits(object(), "int", None, None)


def test_people_read_annotations_without_module_names():
    assert readable("typing.Optional[collections.abc.Sequence[str]]") == "Optional[Sequence[str]]"
    assert readable("'int | None'") == "int | None"
    assert readable("typing.Literal['a', 'b'] | None") == "'a' | 'b' | None"


@pytest.mark.parametrize(
    ("annotation", "default", "wanted"),
    [
        ("tuple[float, float]", None, True),
        ("typing.Tuple[int, ...]", None, True),
        (None, "(0.9, 0.999)", True),
        ("list[int]", None, False),
        ("Sequence[int]", "[]", False),
    ],
)
def test_lists_become_tuples_where_the_target_wants_one(annotation, default, wanted):
    assert wants_tuple(annotation, default) is wanted
