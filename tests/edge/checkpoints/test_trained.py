"""How far a matrix is from ternary ones: distances that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge.checkpoints.trained import kind_distance
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
