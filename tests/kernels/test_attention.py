"""Attention over a cache of every number type, against float64 in NumPy.

What the cache rounds is rounded in the reference too, so these tolerances are about the arithmetic alone; the
last tests measure what the rounding itself costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge.errors import NativeError

Floats = npt.NDArray[np.floating]

# Largest difference, in units of the largest value that a query sees. Integers: weights and queries have 14
# bits. int4: on the edge between two codes, or two sizes of the levels, a row may fall to the other side.
TOLERANCE = {"float32": 3e-6, "float16": 3e-6, "int8": 4e-4, "int4": 2e-2}
LEVELS = np.array([-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127])


def rotation(dim: int) -> Floats:
    """What int4 rows are multiplied with: Hadamard signs, of some elements turned, and a reflection."""
    power = dim & -dim
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard) / np.sqrt(2)
    bits = np.arange(power)
    signs = 1 - 2 * ((bits & bits >> 1 ^ bits >> 2 & bits >> 3) & 1)
    reflection = np.eye(dim // power) - (2 * power / dim if dim > power else 0)
    return np.kron(reflection, signs[:, None] * hadamard * signs)


def rounded_to_int4(x: Floats) -> Floats:
    """The nearest of sixteen levels in each rotated row: the best of three sizes of them."""
    size = np.abs(x).max(-1, keepdims=True)
    usable = size > 1 / 3e38
    turned = x.astype(np.float64) / np.where(usable, size, 1) @ rotation(x.shape[-1])
    deviation = np.where(usable, np.sqrt((turned**2).mean(-1, keepdims=True)), 1)
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2 / 127
    levels = np.stack([LEVELS[np.searchsorted(middles, turned / deviation / top)] for top in (2.2, 2.7, 3.2)])
    scales = (turned * levels).sum(-1, keepdims=True) / (levels**2).sum(-1, keepdims=True)
    found = levels * scales
    best = ((found - turned) ** 2).sum(-1, keepdims=True).argmin(0)[None]
    nearest = np.take_along_axis(found, best, 0)[0]
    return np.where(usable, size * (nearest @ rotation(x.shape[-1])), 0)


def rounded(x: Floats, kv_type: str) -> Floats:
    """As the cache keeps it."""
    if kv_type == "float16":
        return x.clip(-65504, 65504).astype(np.float16).astype(np.float64)
    if kv_type == "int4":
        return rounded_to_int4(x)
    if kv_type == "int8":
        scale = np.abs(x).max(-1, keepdims=True).astype(np.float32) / np.float32(127)
        usable = scale > 127 / 3e38 / 127
        codes = np.rint(x.astype(np.float64) / np.where(usable, scale, 1))
        return np.where(usable, codes * scale.astype(np.float64), 0)
    return x.astype(np.float64)


def masks_of(n: int, positions: int, tree: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.bool_]:
    """[n][positions]: what each query sees."""
    rows = np.arange(n)
    if tree is None:
        return np.arange(positions) <= rows[:, None] + positions - n
    seen = np.ones((n, positions), bool)
    seen[:, positions - n :] = tree[:, None] >> rows.astype(np.uint64) & np.uint64(1)
    return seen


def attention(
    queries: Floats, keys: Floats, values: Floats, tree: npt.NDArray[np.uint64] | None = None
) -> Floats:
    n, heads, dim = queries.shape
    group = heads // keys.shape[1]
    seen = masks_of(n, len(keys), tree)
    out = np.empty(queries.shape)
    for head in range(heads):
        scores = queries[:, head].astype(np.float64) @ keys[:, head // group].T / np.sqrt(dim)
        scores[~seen] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = weights / weights.sum(1, keepdims=True) @ values[:, head // group]
    return out


def random_inputs(n: int, positions: int, heads: int, kv_heads: int, dim: int, seed: int = 0) -> list[Floats]:
    generator = np.random.default_rng(seed)
    shapes = [(n, heads, dim), (positions, kv_heads, dim), (positions, kv_heads, dim)]
    return [generator.standard_normal(shape, dtype=np.float32) * 1.5 for shape in shapes]


@pytest.fixture(params=["float32", "float16", "int8", "int4"])
def kv_type(request) -> str:
    return request.param


@pytest.fixture
def check(operators, tier, kv_type):
    """Compares with the reference, and returns what it found."""

    def compare(queries: Floats, keys: Floats, values: Floats, tree=None) -> Floats:
        found = operators.attention(queries, keys, values, kv_type, tier, tree)
        wanted = attention(queries, rounded(keys, kv_type), rounded(values, kv_type), tree)
        largest = max(float(np.abs(rounded(values, kv_type)).max()), 1e-30)
        error = np.abs(found - wanted).max() / largest
        assert error <= TOLERANCE[kv_type], f"off by {error:.1e} of the largest value"
        return found

    return compare


@pytest.mark.parametrize(
    ("n", "positions"), [(1, 1), (1, 17), (3, 64), (1, 257), (5, 300), (2, 1025), (17, 320), (70, 130)]
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 16), (8, 2, 64), (9, 3, 64), (16, 1, 48), (7, 1, 80), (2, 2, 128)]
)
def test_shapes(check, n: int, positions: int, heads: int, kv_heads: int, dim: int):
    check(*random_inputs(n, positions, heads, kv_heads, dim))


@pytest.mark.parametrize("prefix", [0, 3, 63, 250, 255, 512])
def test_tree(check, prefix: int):
    parents = [-1, 0, 0, 1, 1, 3, 2, 6, -1]
    tree = np.zeros(len(parents), np.uint64)
    for row, parent in enumerate(parents):
        tree[row] = (int(tree[parent]) if parent >= 0 else 0) | 1 << row
    check(*random_inputs(len(parents), prefix + len(parents), 8, 2, 64), tree)


@pytest.mark.parametrize(
    "what",
    [
        *("zero keys", "zero values", "one hot", "huge", "tiny", "sink", "strong sink", "beyond halves"),
        *("queries x 1e-36", "keys x 1e-36", "values x 1e-36", "queries x 1e-42"),
    ],
)
def test_adversarial_values(check, kv_type: str, what: str):
    queries, keys, values = random_inputs(2, 300, 4, 2, 64)
    if what == "zero keys":
        keys[:] = 0
    if what == "zero values":
        values[:] = 0
    if what == "one hot":
        keys[:], values[:] = 0, 0
        keys[7, 0, 5], values[7, 0, 3] = 40, 1
    if what == "huge":
        values *= 1e4 if kv_type == "float16" else 1e30
    if what == "tiny":
        keys *= 1e-40
        values *= 1e-3 if kv_type == "float16" else 1e-30
    if what == "beyond halves":  # they saturate: an infinity would spoil rows that do not see it
        keys[5], values[9] = 1e5 * np.sign(keys[5]), -1e5
        queries *= 1e-4
    if " x 1e-" in what:  # a code of 1 would be a denormal or nothing: as good as zero, and not NaN
        name, factor = what.split(" x ")
        {"queries": queries, "keys": keys, "values": values}[name][:] *= np.float32(factor)
    if what == "sink":  # a first position that takes nearly all the weight and has a value of nearly nothing
        keys[0] = 3 * queries[0, ::2]
        values[0] *= 1e-3
    if what == "strong sink":  # more than the largest float above all later ones, as a power of two
        keys[0] = 16 * queries[0, ::2]
    check(queries, keys, values)


def test_what_a_query_does_not_see_does_not_matter(operators, tier, kv_type):
    """Not even with a weight of 2^-64: values are as large as can be, the scale of integers is NaN."""
    tree = np.array([1, 3, 4, 12, 16], np.uint64)
    hidden = {"causal": slice(-1, None), "tree": [-5, -4, -1]}  # of the last but one
    for name, rows in hidden.items():
        queries, keys, values = random_inputs(5, 70, 4, 2, 64)
        masks = tree if name == "tree" else None
        before = operators.attention(queries, keys, values, kv_type, tier, masks)
        values[rows] = {"float16": 6e4, "float32": 1e30}.get(kv_type, np.nan)
        keys[rows] = 3
        after = operators.attention(queries, keys, values, kv_type, tier, masks)
        np.testing.assert_array_equal(after[-2], before[-2])
        assert not np.array_equal(after[-1], before[-1])


def test_not_a_number_is_seen(operators, tier, kv_type):
    """Damaged weights must not vanish in the codes of the cache."""
    for which in range(3):
        arrays = random_inputs(1, 70, 2, 1, 32)
        arrays[which][-1, 0, 3] = np.nan
        assert not np.isfinite(operators.attention(*arrays, kv_type, tier)).all()


@pytest.mark.parametrize("n", [1, 2, 4, 5, 9, 33])
def test_alone_equals_together(operators, tier, kv_type, n: int):
    """The last token's row has the same bits, whatever is computed beside it."""
    queries, keys, values = random_inputs(33, 600, 16, 2, 64)
    alone = operators.attention(queries[-1:], keys, values, kv_type, tier)
    together = operators.attention(queries[-n:], keys, values, kv_type, tier)
    np.testing.assert_array_equal(together[-1:], alone)


@pytest.mark.parametrize(
    ("kv_type", "largest", "divergence"),
    [("float16", 1.5e-3, 1e-6), ("int8", 3e-2, 3e-4), ("int4", 5e-1, 5e-2)],
)
def test_what_rounding_costs(operators, kv_type: str, largest: float, divergence: float):
    """Largest error in standard deviations of a value; mean KL divergence of the attention weights (nats)."""
    queries, keys, values = random_inputs(8, 512, 8, 2, 64)
    exact = attention(queries, keys, values)
    found = operators.attention(queries, keys, values, kv_type, "portable")
    assert 0 < np.abs(found - exact).max() / values.std() <= largest
    scores = [
        np.einsum("nhd,phd->nhp", queries, np.repeat(k, 4, axis=1)) / 8
        for k in (keys, rounded(keys, kv_type))
    ]
    logs = [s - np.log(np.exp(s).sum(-1, keepdims=True)) for s in scores]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean()
    assert 0 < kl <= divergence


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "message"),
    [(3, 2, 64, "multiple of kv_heads"), (2, 1, 24, "multiple of 16"), (2, 1, 2048, "multiple of 16")],
)
def test_wrong_shapes_are_refused(operators, heads: int, kv_heads: int, dim: int, message: str):
    with pytest.raises(NativeError, match=message):
        operators.attention(*random_inputs(1, 2, heads, kv_heads, dim), "int8", "portable")
