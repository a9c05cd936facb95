"""One 4-bit layer by itself, packed by hand: its groups, its zeros, and some of its rows."""

from __future__ import annotations

import numpy as np
import pytest

from edge.checkpoints.int4_linear import Int4Linear, Int4Settings, open_int4
from edge.errors import CheckpointError
from edge.formats.safetensors import TensorEntry
from edge.quant.scheme import QuantScheme

ROWS, COLUMNS, GROUP = 16, 64, 32
RANDOM = np.random.default_rng(3)
CODES = RANDOM.integers(0, 16, (ROWS, COLUMNS))
ZEROS = RANDOM.integers(0, 16, (ROWS, COLUMNS // GROUP))
SCALES = RANDOM.integers(1, 64, (ROWS, COLUMNS // GROUP)) / 64  # bfloat16 and float16 hold them
WEIGHTS = np.repeat(SCALES, GROUP, 1) * (CODES - np.repeat(ZEROS, GROUP, 1))


def words(nibbles: np.ndarray) -> np.ndarray:
    """Eight numbers along the last axis in one word, the first in the lowest bits."""
    shifts = 4 * np.arange(8, dtype=np.uint64)
    parts = nibbles.reshape(*nibbles.shape[:-1], -1, 8).astype(np.uint64)
    return (parts << shifts).sum(-1).astype(np.uint32).view(np.int32)


def layer(dtype: str = "F16", group_size: int = GROUP, method: str = "gptq") -> Int4Linear:
    """In the second format of GPTQ, whose zeros are stored as they are."""
    bits = SCALES.T.astype(np.float32).view(np.uint32) >> 16
    arrays = {
        "w.qweight": words(CODES).T,
        "w.qzeros": words(ZEROS.T),
        "w.scales": {"BF16": bits.astype(np.uint16)}.get(dtype, SCALES.T.astype(np.float16)),
    }
    kinds = {"w.qweight": "I32", "w.qzeros": "I32", "w.scales": dtype}
    entries = {name: TensorEntry(kinds[name], array.shape) for name, array in arrays.items()}
    settings = Int4Settings(method, group_size, zeros_less_one=False)
    return open_int4("w", ROWS, COLUMNS, settings, entries, arrays.__getitem__, "the file")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_weights_are_scale_times_code_less_zero(dtype: str) -> None:
    linear = layer(dtype)
    assert (linear.scheme, linear.exact) == (QuantScheme("int4", GROUP, minimum=True), True)
    np.testing.assert_array_equal(linear.read_float32(), WEIGHTS)
    np.testing.assert_array_equal(linear.read().dequantize(), WEIGHTS)


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (8, 16), (3, 5)])
def test_some_of_its_rows(start: int, stop: int) -> None:
    part = layer().rows(slice(start, stop))
    assert part.shape == (stop - start, COLUMNS)
    np.testing.assert_array_equal(part.read_float32(), WEIGHTS[start:stop])
    np.testing.assert_array_equal(part.read().dequantize(), WEIGHTS[start:stop])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "I32"}, r"'w\.scales' of the file is I32 \[2, 16\].*asks for F16 \[2, 16\]"),
        (
            {"group_size": -1},
            r"group_size -1\) asks for F16 \[1, 16\]",
        ),
        ({"group_size": 16}, r"asks for F16 \[4, 16\]"),
        ({"method": "awq"}, r"'w\.qweight' of the file is I32 \[8, 16\].*asks for I32 \[64, 2\]"),
    ],
)
def test_shapes_that_contradict_the_settings(change: dict[str, str], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        layer(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "columns"), [(12, 64), (16, 60)])
def test_shapes_that_words_cannot_hold(rows: int, columns: int) -> None:
    settings = Int4Settings("gptq", GROUP, zeros_less_one=False)
    with pytest.raises(CheckpointError, match=f"can't hold a {rows}x{columns} matrix: eight numbers share"):
        open_int4("w", rows, columns, settings, {}, lambda name: np.empty(0), "the file")
