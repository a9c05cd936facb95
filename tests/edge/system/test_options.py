"""Options of dataclasses: their checks, and one declaration in several dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.system.options import REQUIRED, check_options, default_of, option, options_of, plain, same, several


@dataclass(frozen=True)
class Oven:
    kind: Literal["gas", "steam"] = option(REQUIRED, "What heats.", choices=("gas", "steam"))
    degrees: int | None = option(None, "How hot.", least=0, most=300)
    weight: float = option(1.5, "Of the dough.", least=0.1)
    fan: bool = option(False, "Turn the fan on.")
    notes: Mapping[int, float] = option(dict, "Any.")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Bakery:
    kind: str = same(Oven, "kind")
    degrees: tuple[int | None, ...] = several(Oven, "degrees")
    notes: Mapping[int, float] = same(Oven, "notes")

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "coal"}, "Unknown kind 'coal'; choose one of gas, steam."),
        ({"kind": None}, "Unknown kind 'None'"),
        ({"degrees": 301}, "degrees must be a whole number from 0 to 300, got 301."),
        ({"degrees": 1.0}, "degrees must be a whole number from 0 to 300, got 1.0."),
        ({"degrees": True}, "degrees must be"),
        ({"weight": 0}, "weight must be a number of 0.1 or more, got 0."),
        ({"fan": 1}, "fan must be true or false, got 1."),
    ],
)
def test_wrong_values(changes, sentence):
    with pytest.raises(EdgeError) as caught:
        Oven(**{"kind": "gas", **changes})
    assert str(caught.value).startswith(sentence)


def test_right_values():
    assert Oven("steam", degrees=0, weight=2, notes={3: 1.0}).weight == 2
    assert (Oven("gas", degrees=300, weight=0.1).degrees, Oven("gas", degrees=0).degrees) == (300, 0)
    with pytest.raises(TypeError, match="kind"):
        Oven()


def test_one_declaration_in_several_dataclasses():
    shared = Bakery(kind="gas")
    assert shared.degrees == (None,) and shared.notes == {}
    first, second = options_of(Oven), options_of(Bakery)
    assert second["kind"] is first["kind"] and default_of(Bakery, "kind") is REQUIRED
    for name in ("help", "least", "most"):
        assert getattr(second["degrees"], name) == getattr(first["degrees"], name)
    assert second["degrees"].commas and not first["degrees"].commas
    assert {each.name for each in fields(Bakery)} == set(second)


@pytest.mark.parametrize(
    ("degrees", "sentence"),
    [
        ((200, 301), "degrees must be a whole number from 0 to 300, got 301"),
        ([200], "degrees must be a tuple"),
    ],
)
def test_every_value_of_a_tuple_is_checked(degrees, sentence):
    with pytest.raises(EdgeError, match=sentence):
        Bakery(kind="gas", degrees=degrees)


def test_numbers_of_numpy_become_pythons_wherever_they_are():
    given = {np.int64(3): [np.float32(0.5), (np.True_, "x")], "b": (np.int32(7),), "c": None}
    found = plain(given)
    assert found == {3: [0.5, (True, "x")], "b": (7,), "c": None}
    assert [type(each) for each in (*found, found[3][0], found[3][1][0], found["b"][0])] == [
        *(int, str, str, float, bool, int),
    ]
