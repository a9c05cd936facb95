"""Draws on a simulated device against the host's sampler, with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edge.errors import NativeError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.draws import MAX_TOP, Draw
from edge.executors.cuda.operators.sampling import CAPACITY, CHUNK
from edge.executors.sampling import DrawOptions
from tests.kernels.cuda.sampler import Case, assert_as_on_host, drawn

Float32 = npt.NDArray[np.float32]


def _wide(random: np.random.Generator, size: int) -> Float32:
    return random.normal(0, 3, size).astype(np.float32)


def _peaked(random: np.random.Generator, size: int) -> Float32:
    """As a language model's: a few tokens far above the others."""
    x = random.normal(0, 3, size)
    x[random.integers(0, size, 8)] += random.uniform(5, 12, 8)
    return x.astype(np.float32)


def _tied(random: np.random.Generator, size: int) -> Float32:
    """Few different values."""
    return np.round(random.normal(0, 1.5, size)).astype(np.float32)


def _sparse(random: np.random.Generator, size: int) -> Float32:
    """Most tokens are impossible."""
    return np.where(random.random(size) < 0.9, -np.inf, _wide(random, size)).astype(np.float32)


def _far(random: np.random.Generator, size: int) -> Float32:
    """Large values of one sign, and two of the best."""
    x = random.normal(-3e4, 3e3, size).astype(np.float32)
    x[random.integers(0, size, 2)] = -2e4
    return x


SHAPES: dict[str, Callable[[np.random.Generator, int], Float32]] = {
    "wide": _wide,
    "peaked": _peaked,
    "tied": _tied,
    "sparse": _sparse,
    "far": _far,
}
FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 0.0},
    {"temperature": 1e-30},
    {"temperature": 1e30, "top_p": 0.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 290, "temperature": 3.0},
    {"top_p": 0.0},
    {"top_p": 0.6},
    {"top_p": 0.999999},
    {"min_p": 0.07},
    {"min_p": 1.0},
    {"top_p": 0.9, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_filters_alone_and_together(device: Device, shape: str) -> None:
    random = np.random.default_rng(len(shape))
    assert_as_on_host(
        device,
        [
            Case(SHAPES[shape](random, 300), Draw(DrawOptions(**settings, seed=seed), index=seed))
            for seed, settings in enumerate(FILTERS)
        ],
    )


def _any_options(random: np.random.Generator, size: int) -> DrawOptions:
    """Everything at once, with 64-bit seeds."""
    biased = random.permutation(size)[: random.integers(0, 4)].astype(np.int32)
    return DrawOptions(
        temperature=float(random.choice([0.0, 0.5, 0.9, 1.4])),
        top_k=int(random.choice([0, 3, 50, 400])),
        top_p=float(random.choice([1.0, 0.9, 0.5])),
        min_p=float(random.choice([0.0, 0.02])),
        repetition_penalty=float(random.choice([1.0, 1.3, 0.8])),
        frequency_penalty=float(random.choice([0.0, 0.4])),
        presence_penalty=float(random.choice([0.0, -0.7])),
        bias_tokens=biased,
        bias_values=random.choice([-np.inf, 3.0, -2.5], biased.size).astype(np.float32),
        seed=int(random.integers(0, 2**64, dtype=np.uint64)),
        choice=int(random.integers(0, 2**40)),
        logprobs=[None, 0, 2, MAX_TOP][random.integers(0, 4)],
    )


def _mask(random: np.random.Generator, size: int) -> npt.NDArray[np.uint32]:
    return random.integers(0, 2**32, -(-size // 32), dtype=np.uint32)


def _any_case(random: np.random.Generator, size: int) -> Case:
    shape = SHAPES[random.choice([*SHAPES])]
    return Case(
        shape(random, size),
        Draw(
            _any_options(random, size),
            random.integers(0, size, random.integers(0, 30)).astype(np.int32),
            int(random.integers(0, 2**35)),
            _mask(random, size) if random.random() < 0.3 else None,
        ),
    )


@pytest.mark.parametrize("size", [33, 1000, 3 * CHUNK + 1])
def test_everything_at_once(device: Device, size: int) -> None:
    random = np.random.default_rng(size)
    assert_as_on_host(device, [_any_case(random, size) for _ in range(10)])


def test_a_row_does_not_depend_on_the_others(device: Device) -> None:
    random = np.random.default_rng(3)
    cases = [_any_case(random, 700) for _ in range(6)]
    together = drawn(device, cases)
    for row, case in enumerate(cases):
        alone = drawn(device, [case])
        for name, values in vars(alone).items():
            assert values[0].tobytes() == getattr(together, name)[row].tobytes(), (row, name)


LAST = 1 - 2**-53
"""The largest random number: the last token that is kept."""


@pytest.mark.parametrize("shape", [_wide, _tied])
def test_what_filters_keep(device: Device, shape: Callable[[np.random.Generator, int], Float32]) -> None:
    """Tokens in the order of their logits, so that the last one says how many are kept."""
    x = -np.sort(-shape(np.random.default_rng(4), 300))
    settings = [
        {"temperature": 3.0},
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 20, "min_p": 0.1, "temperature": 0.7},
        {"top_k": 200, "top_p": 0.99, "min_p": 0.1},
        {"top_p": 0.5, "min_p": 0.001},
    ]
    cases = [Case(x, Draw(DrawOptions(**chosen))).with_random(LAST) for chosen in settings]
    cases.append(Case(x, Draw(DrawOptions(top_k=20))).with_random(0.0))
    assert drawn(device, cases).tokens.tolist() == [case.on_host().token for case in cases]


def test_where_sums_decide(device: Device) -> None:
    """Random numbers at the border of two tokens, where either is right and no third one."""
    random = np.random.default_rng(8)
    x = _wide(random, 400)
    after = np.cumsum(np.exp(x.astype(np.float64) - x.max()))
    cases = [
        Case(x, Draw(DrawOptions())).with_random(after[token] / after[-1]) for token in range(20, 400, 31)
    ]
    assert_as_on_host(device, cases, apart=len(cases))


def test_of_equal_tokens_the_first_ones_are_kept(device: Device) -> None:
    """All of 1,100 tokens are equal: filters cut in the middle, in another chunk than the first."""
    x = np.where(np.arange(1100) % 3 == 1, -0.0, 0.0).astype(np.float32)
    settings = [{"top_k": 777}, {"top_p": 0.5}, {"top_k": 1000, "top_p": 0.9}, {"temperature": 0.0}]
    cases = [Case(x, Draw(DrawOptions(**chosen))).with_random(LAST) for chosen in settings]
    half = Case(x, Draw(DrawOptions())).with_random(0.5)
    assert drawn(device, [*cases, half]).tokens.tolist() == [776, 549, 899, 0, 550]


def test_more_candidates_than_a_list_holds(device: Device) -> None:
    random = np.random.default_rng(5)
    size = CAPACITY + 300
    settings = [{"top_k": size - 50, "top_p": 0.99}, {"top_p": 0.9999}]
    cases = [
        Case(
            random.normal(0, 0.1, size).astype(np.float32),
            Draw(DrawOptions(**chosen, seed=seed, logprobs=3)),
        )
        for seed, chosen in enumerate(settings)
    ]
    assert_as_on_host(device, cases)


def test_few_tokens_that_are_allowed_are_listed(device: Device) -> None:
    """As a grammar leaves them; fewer than top-k asks for."""
    random = np.random.default_rng(6)
    allowed = np.zeros(32, np.uint32)
    allowed[[3, 20]] = 0b1011, 1 << 31
    cases = [
        Case(_peaked(random, 1000), Draw(DrawOptions(top_k=40, top_p=0.95), index=i, allowed=allowed))
        for i in range(4)
    ]
    assert_as_on_host(device, cases)


def test_a_long_history(device: Device) -> None:
    """Longer than a chunk, with tokens that come again and again."""
    random = np.random.default_rng(7)
    history = (random.geometric(0.02, 2 * CHUNK + 5) % 600).astype(np.int32)
    options = DrawOptions(repetition_penalty=1.2, frequency_penalty=0.05, presence_penalty=0.3, logprobs=2)
    cases = [Case(_wide(random, 600), Draw(options, history, i)) for i in range(3)]
    assert_as_on_host(device, cases)


_BAD = {
    "nan": Case(np.where(np.arange(70) == 66, np.nan, 0).astype(np.float32), Draw(DrawOptions())),
    "infinity": Case(np.where(np.arange(70) == 3, np.inf, 0).astype(np.float32), Draw(DrawOptions())),
    "impossible": Case(np.full(70, -np.inf, np.float32), Draw(DrawOptions(temperature=0))),
    "too much": Case(
        np.full(70, 3e38, np.float32),
        Draw(DrawOptions(bias_tokens=np.array([5], np.int32), bias_values=np.array([3e38], np.float32))),
    ),
    "masked": Case(np.zeros(70, np.float32), Draw(DrawOptions(), allowed=np.zeros(3, np.uint32))),
    "forbidden": Case(
        np.zeros(70, np.float32),
        Draw(
            DrawOptions(
                bias_tokens=np.arange(70, dtype=np.int32),
                bias_values=np.full(70, -np.inf, np.float32),
                logprobs=1,
            )
        ),
    ),
}


def test_what_is_wrong_is_said_as_on_the_host(device: Device) -> None:
    """Also that the row between them gets its token."""
    good = Case(np.arange(70, dtype=np.float32), Draw(DrawOptions(temperature=0)))
    cases = [*_BAD.values(), good]
    found = drawn(device, cases)
    for row, case in enumerate(_BAD.values()):
        with pytest.raises(NativeError) as expected:
            case.on_host()
        with pytest.raises(NativeError) as own:
            found.sampled(row, case.draw.options)
        assert str(own.value) == str(expected.value)
    assert found.sampled(len(_BAD), good.draw.options).token == 69


def test_best_tokens(device: Device) -> None:
    """More than there are, ties across chunks, and tokens that the row's own filters forbid."""
    tied = np.zeros(2 * CHUNK + 10, np.float32)
    tied[[5, CHUNK, 2 * CHUNK + 3]] = 1.0
    forbid = {"bias_tokens": np.array([CHUNK], np.int32), "bias_values": np.array([-math.inf], np.float32)}
    assert_as_on_host(device, [Case(tied, Draw(DrawOptions(logprobs=MAX_TOP, **forbid)))])
    few = np.array([0.5, -np.inf, 0.5, -1.0, 7.0], np.float32)
    assert_as_on_host(device, [Case(few, Draw(DrawOptions(logprobs=MAX_TOP), index=9))])
