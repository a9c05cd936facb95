"""Small functions of the kernels over all that they can be given: halves, SiLU, the draw of the sampler."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.operators import LayerOperators
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.quant.packing import pack
from edge.quant.scheme import QuantScheme
from tests.philox import philox, place_of

F16 = QuantScheme("f16")


def matrix(data: np.ndarray, rows: int, columns: int) -> native.Matrix:
    return native.matrix(F16.packing, rows, columns, int(data.ctypes.data))


def test_every_half(operators):
    """All 65,536 bit patterns: subnormals, both zeros, infinities and NaN."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(16, 4096)
    # A tile of 16 rows holds its columns one after the other.
    data = np.ascontiguousarray(halves.T).view(np.uint8).ravel()
    weights = matrix(data, 16, 4096)
    for row in range(16):
        found, wanted = operators.dequantize_row(weights, row), halves[row].astype(np.float32)
        np.testing.assert_array_equal(found, wanted)
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


def test_every_half_as_a_weight(operators, tier: str):
    """Kernels read halves on their own: a column alone gives them back; infinity and NaN do not vanish."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(2048, 32)
    data = np.ascontiguousarray(halves.reshape(128, 16, 32).transpose(0, 2, 1)).view(np.uint8).ravel()
    found = operators.linear(matrix(data, 2048, 32), np.eye(32, dtype=np.float32), "float32", tier).T
    finite = np.isfinite(halves.astype(np.float32)).all(1)
    np.testing.assert_array_equal(found[finite], halves[finite].astype(np.float32))
    assert not np.isfinite(found[~finite]).any()


def test_what_the_cache_rounds(operators, tier: str):
    """Attention to one position gives its value back: halves, what lies between, and beyond the last."""
    halves = np.arange(31 << 10, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2  # exact; the last ones beyond 65504 are left out
    numbers = [
        halves,
        middles,
        np.nextafter(middles, 0),
        np.nextafter(middles, np.float32(1e9)),
        [65520, 1e9],
    ]
    values = np.concatenate([sign * np.concatenate(numbers).astype(np.float32) for sign in (1, -1)])
    values = np.pad(values, (0, -len(values) % 1024)).reshape(1, -1, 1024)
    zeros = np.zeros_like(values)
    found = operators.attention(zeros, zeros, values, "float16", tier)
    np.testing.assert_array_equal(found, values.clip(-65504, 65504).astype(np.float16).astype(np.float32))
    codes = np.concatenate([[127, -127], np.arange(-31, 31) + 0.5, np.zeros(16)]).astype(np.float32)
    codes = codes.reshape(1, 1, 80)
    found = operators.attention(codes * 0, codes * 0, codes, "int8", tier)
    np.testing.assert_allclose(found, np.rint(codes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_silu_of_every_size(tier, activations: str):
    """g / (1 + e^-g) where e^-g overflows, where it is nothing, and between."""
    sizes = np.array([0, 0.5, 1, 8, 16, 32, 80, 86, 87, 88, 89, 90, 96, 128, 1024, 65504, 1e6], np.float64)
    gates = np.concatenate([sizes, -sizes])
    rows = len(gates)
    gate = np.repeat((gates / 32).astype(np.float16)[:, None], 32, 1).astype(np.float32)
    exact = gate[:, 0].astype(np.float64) * 32
    packed, ones = pack(gate, F16), pack(np.full((rows, 32), 1 / 32, np.float32), F16)
    pool, scratch = ThreadPool(1), ScratchBuffer()
    run = LayerOperators(pool.parallel, scratch.scratch, tier)
    x = np.ones((3, 32), np.float32)
    found = run.rms_norm_swiglu(
        x, np.ones(32, np.float32), 0.0, matrix(packed, rows, 32), matrix(ones, rows, 32), activations
    )
    with np.errstate(over="ignore"):
        wanted = exact / (1 + np.exp(-exact))
    for row in found:
        np.testing.assert_allclose(row, wanted, rtol=2e-6, atol=1e-30)


def draw(logits: np.ndarray, random: float, **settings: float) -> int:
    sampling = native.Sampling(
        size=ctypes.sizeof(native.Sampling),
        **{"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, **settings},
    )
    index, choice = place_of(random, 0)
    given = native.Draw(
        size=ctypes.sizeof(native.Draw),
        **{"vocab_size": logits.size, "logits": logits.ctypes.data, "index": index, "choice": choice},
    )
    result = native.SampleResult()
    native.check(native.library().edge_sample(sampling, given, result))
    return int(result.token)


@pytest.mark.parametrize(
    ("counter", "key", "out"),  # tests/kat_vectors of the authors' Random123
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_published_random_numbers(counter: str, key: str, out: str):
    """The library's, and those that the tests choose random numbers by."""
    given = [tuple(int(word, 16) for word in words.split()) for words in (counter, key, out)]
    words = [(ctypes.c_uint32 * len(each))(*each) for each in given]
    found = (ctypes.c_uint32 * 4)()
    native.library().edge_philox(words[0], words[1], found)
    assert tuple(found) == given[2]
    assert philox(given[0], given[1]) == given[2]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "change", "sentence"),
    [
        ("step", {"n": 0, "logits_count": 0}, "1 to 64 tokens that all have logits"),
        ("step", {"n": 65, "logits_count": 65}, "1 to 64 tokens that all have logits"),
        ("step", {"logits_count": 1}, "1 to 64 tokens that all have logits"),
        ("step", {"soft_count": 1}, "1 to 64 tokens that all have logits"),
        ("step", {"tokens": None}, "1 to 64 tokens that all have logits"),
        ("step", {"size": 8}, "another size here"),
        ("draw", {"size": 8}, "another size here"),
        ("draw", {"history_length": 1}, "without penalties and masks"),
        ("draw", {"allowed": 64}, "without penalties and masks"),
        ("draw", {"logits": None}, "needs logits"),
    ],
    ids=str,
)
def test_what_is_no_step_with_guesses_is_refused(where: str, change: dict[str, int | None], sentence: str):
    logits, tokens = np.eye(3, 9, 4, np.float32), np.array([1, 4, 5], np.int32)  # 4, 5 and 6 are the best
    sampling = native.Sampling(
        size=ctypes.sizeof(native.Sampling), top_p=1, typical_p=1, repetition_penalty=1
    )
    draw = native.Draw(size=ctypes.sizeof(native.Draw), vocab_size=9, logits=logits.ctypes.data)
    step = native.Step(size=ctypes.sizeof(native.Step), n=3, logits_count=3, tokens=tokens.ctypes.data)
    drawn, along = native.Drawn(), native.library().edge_draw_along
    native.check(along(sampling, draw, step, drawn))
    assert (drawn.tokens[: drawn.count], drawn.rows[: drawn.count - 1]) == ([4, 5, 6], [1, 2])
    for name, value in change.items():
        setattr(step if where == "step" else draw, name, value)
    with pytest.raises(NativeError, match=sentence):
        native.check(along(sampling, draw, step, drawn))


@pytest.mark.parametrize("size", [1, 127, 128, 129, 511, 512, 513, 1024, 1300])
def test_the_ends_of_the_distribution(size: int):
    """0 draws the first token with weight, the largest number below 1 the last one; some are masked."""
    generator = np.random.default_rng(size)
    for masked in {0, size // 3, size - 1}:
        logits = generator.standard_normal(size).astype(np.float32)
        logits[size - masked // 2 :] = -np.inf
        logits[: masked - masked // 2] = -np.inf
        allowed = np.flatnonzero(np.isfinite(logits))
        assert draw(logits, 0.0) == allowed[0]
        assert draw(logits, np.nextafter(1.0, 0.0)) in allowed[-3:]  # sums round
        for random in generator.random(20):
            assert draw(logits, random) in allowed


@pytest.mark.parametrize("place", [0, 1, 126, 127, 128, 511, 512, 767, 768, 770])
def test_the_best_token_at_every_border(place: int):
    """Blocks have 128 tokens and chunks 512; the last ones are not full. Of equal ones the first is meant."""
    logits = np.random.default_rng(0).standard_normal(771).astype(np.float32)
    logits[place] = 9
    for temperature, top_k in ((0.0, 0), (1.0, 1)):
        assert draw(logits, 0.7, temperature=temperature, top_k=top_k) == place
        logits[place:] = np.maximum(logits[place:], 9 * (np.arange(771 - place) % 200 == 0))
        assert draw(logits, 0.7, temperature=temperature, top_k=top_k) == place
    with pytest.raises(Exception, match="NaN or infinity"):
        logits[place] = np.nan
        draw(logits, 0.5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("temperature", -0.1), ("temperature", np.inf), ("top_k", -1), ("top_p", 1.05), ("top_p", np.nan)),
        *(("min_p", -0.01), ("typical_p", 1.05), ("repetition_penalty", 0.0), ("repetition_penalty", np.inf)),
        *(("frequency_penalty", np.inf), ("presence_penalty", np.nan), ("logprobs", 65), ("logprobs", -1)),
    ],
)
def test_settings_are_checked_at_the_border(setting: str, value: float):
    """Python's own check lies before; other callers have none."""
    with pytest.raises(NativeError, match=setting):
        draw(np.zeros(9, np.float32), 0.5, **{setting: value})
