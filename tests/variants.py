"""Many variants of one test, of which a few run by default and all in `make test-all`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest


def mostly_slow(*axes: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Parameters of every combination of `axes`; those that aren't in `fast` are marked slow.

    With one axis, `fast` holds its values; with several, tuples of them.
    """
    every = [each[0] if len(axes) == 1 else each for each in product(*axes)]
    unknown = [each for each in fast if each not in every]
    assert not unknown, unknown

    def parameter(values: Any) -> Any:
        marks = () if values in fast else pytest.mark.slow
        return pytest.param(*(values if len(axes) > 1 else [values]), marks=marks)

    return [parameter(each) for each in every]
