"""How far a matrix is from ternary ones: distances that can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.trained import check_trained, kind_distance
from edge.errors import CheckpointError
from edge.quant.scheme import QuantScheme

TERNARY = QuantScheme("ternary").declared


@pytest.mark.parametrize(
    ("row", "distance"),
    [
        ([0.0] * 32, 0),  # of norm 0
        ([1.0, -1.0, 0.0, 1.0] * 8, 0),
        ([1.0] * 32 + [-5.0] * 32, 0),  # two groups of 32
        ([1.0] * 32 + [-5.0] * 32 + [9.0] * 8, 0),  # the last one padded
        ([1.0, 3.0] * 16, 10**-0.5),  # as 0 and 3: the error has norm 4, the row sqrt(16 + 9 * 16)
        ([1.0, 3.0] * 8 + [0.0] * 16, 10**-0.5),
        ([2.0, 3.0] * 16, 26**-0.5),  # as 2.5: 32 errors of 0.5 in a row of norm sqrt(16 * (4 + 9))
    ],
)
def test_the_distance_to_the_nearest_ternary_matrix(row: list[float], distance: float) -> None:
    matrix = np.array([row, row], np.float32)
    assert kind_distance(matrix, TERNARY) == pytest.approx(distance, abs=1e-6)
    assert kind_distance(1000 * matrix, TERNARY) == pytest.approx(distance, abs=1e-6)


def test_the_groups_of_the_training_are_kept_and_others_refused() -> None:
    checkpoint: Any = SimpleNamespace(source="somewhere")  # nothing is read of what is ternary already
    matrices = [TensorInfo(name, (2, 64), "F16", QuantScheme("ternary", 32)) for name in ("a", "b")]
    for accepted in (QuantScheme.from_name("ternary"), QuantScheme("ternary", 32)):
        check_trained(checkpoint, accepted, matrices, "layers")
    with pytest.raises(CheckpointError, match="'a' of somewhere is ternary-g32, not ternary-g64"):
        check_trained(checkpoint, QuantScheme("ternary", 64), matrices, "layers")


def test_those_that_are_not_ternary_are_counted_and_the_first_is_measured() -> None:
    schemes = {"a": QuantScheme("ternary", 32), "b": QuantScheme("f16"), "c": QuantScheme("f16")}
    rows = {"b": [[1.0, 3.0] * 16], "c": [[0.0] * 32]}
    checkpoint: Any = SimpleNamespace(source="somewhere", read=lambda name: np.array(rows[name], np.float32))
    matrices = [TensorInfo(name, (1, 32), "F16", scheme) for name, scheme in schemes.items()]
    with pytest.raises(CheckpointError, match=r"2 of its 3 layers are not.*\('b'\).*by 31\.62% of its norm"):
        check_trained(checkpoint, QuantScheme.from_name("ternary"), matrices, "layers")
