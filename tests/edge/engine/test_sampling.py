"""The native sampler against a plain numpy reference of the same order, and its statistics and refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from edge.engine.sampling import Sampler
from edge.engine.settings import SamplingParams
from edge.errors import EdgeError, NativeError, TokenizerError
from edge.executors.native.library import MAX_LOGPROBS
from tests.philox import place_of

SIZES = (1, 2, 15, 63, 64, 65, 130, 1000, 49152, 73448)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def best_first(score: np.ndarray) -> np.ndarray:
    """Indices by descending score, ties by ascending index."""
    return np.argsort(-score, kind="stable")


def keep_mass(order: np.ndarray, p: np.ndarray, share: float) -> np.ndarray:
    """The shortest beginning of `order` that holds `share` of the mass, at least one token."""
    before = np.cumsum(p[order]) - p[order]
    count = max(1, int((before < share * p.sum()).sum()))
    return order[:count]


def reference(logits, params: SamplingParams, history=()) -> np.ndarray:
    """Probabilities of all tokens after bias, penalties, temperature, top-k, typical, top-p and min-p."""
    x = np.asarray(logits, np.float64).copy()
    for token, bias in params.logit_bias.items():
        x[token] += bias
    ids, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
    seen = x[ids]
    seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    x[ids] = seen - params.frequency_penalty * counts - params.presence_penalty
    x = x / params.temperature
    if params.top_k:
        x[best_first(x)[params.top_k :]] = -np.inf
    p = softmax(x)
    if params.typical_p < 1:
        with np.errstate(divide="ignore"):
            surprise = -np.log(p)
        entropy = p[p > 0] @ surprise[p > 0]
        kept = keep_mass(best_first(-np.abs(surprise - entropy)), p, params.typical_p)
        p = np.where(np.isin(np.arange(p.size), kept), p, 0)
    if params.top_p < 1:
        kept = keep_mass(best_first(p), p, params.top_p)
        p = np.where(np.isin(np.arange(p.size), kept), p, 0)
    p = np.where(p >= params.min_p * p.max(), p, 0)
    return p / p.sum()


def drawn_with(params: SamplingParams, random: float, logits, history=()) -> int:
    """The token of this random number."""
    seed = 0 if params.seed is None else params.seed
    index, choice = place_of(random, seed)
    sampler = Sampler(replace(params, seed=seed), choice=choice)
    return sampler.sample(np.asarray(logits, np.float32), history, index=index).token


def assert_follows(logits, params: SamplingParams, history=(), tolerance=2e-5) -> None:
    """Draws with chosen random numbers land where the reference's cumulative distribution says."""
    p = reference(logits, params, history)
    after = np.cumsum(p)
    for r in (0.0, 0.05, 0.3, 0.5, 0.8, 0.97, 1 - 1e-9):
        token = drawn_with(params, r, logits, history)
        low, high = after[token] - p[token], after[token]
        assert low - tolerance <= r <= high + tolerance, (params, r, token, low, high)


def peaked(size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    """Logits shaped like a language model's: a few tokens far above a wide field."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, size)
    best = rng.integers(0, size, 8)
    x[best] += rng.uniform(5, 12, best.size)
    return x.astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_greedy_is_argmax(size):
    x = peaked(size)
    assert Sampler(SamplingParams(temperature=0)).sample(x).token == int(np.argmax(x))


def test_greedy_ties_go_to_the_lowest_id():
    x = np.zeros(1000, np.float32)
    x[[70, 71, 800]] = 2
    assert Sampler(SamplingParams(temperature=0)).sample(x).token == 70


FILTERS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 20},
    "top_k of one": {"top_k": 1},
    "top_k of most": {"top_k": 900},
    "top_p": {"top_p": 0.9},
    "top_p, nearly all": {"top_p": 0.999},
    "top_p of nothing": {"top_p": 0.0},
    "min_p": {"min_p": 0.05},
    "typical": {"typical_p": 0.8},
    "all filters": {"temperature": 1.3, "top_k": 201, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.01},
    "typical and top_p": {"typical_p": 0.9, "top_p": 0.7, "min_p": 0.02},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FILTERS)
def test_filters_follow_the_reference(name, size):
    for spread in (0.5, 3.0):
        assert_follows(peaked(size, spread=spread), SamplingParams(**{"temperature": 1.0, **FILTERS[name]}))


@pytest.mark.parametrize("name", FILTERS)
def test_a_flat_distribution(name):
    """Random weights give nearly equal logits: no threshold leaves few candidates there."""
    x = np.random.default_rng(5).normal(0, 0.05, 20000).astype(np.float32)
    assert_follows(x, SamplingParams(**{"temperature": 1.0, **FILTERS[name]}), tolerance=1e-4)


@pytest.mark.parametrize("name", ["plain", "top_k", "top_p", "min_p", "typical", "all filters"])
def test_equal_logits_keep_the_lower_ids(name):
    # No share below times the size is a whole number, so that rounding can't move a boundary.
    assert_follows(np.full(5003, 1.5, np.float32), SamplingParams(**{"temperature": 1.0, **FILTERS[name]}))


@pytest.mark.parametrize("size", [65, 49152])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"frequency_penalty": 0.4},
        {"presence_penalty": 1.1},
        {"presence_penalty": -1.1},
        {"frequency_penalty": -0.4},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.5, "top_k": 40},
    ],
)
def test_penalties_and_bias_follow_the_reference(penalties, size):
    x = peaked(size)
    best = best_first(x)[:12]
    history = [*best.tolist(), *best[:4].tolist(), *best[:2].tolist(), 0]
    bias = {int(best[0]): -2.0, int(best[5]): 3.5, 7: -math.inf}
    params = SamplingParams(temperature=0.9, top_p=0.95, logit_bias=bias, **penalties)
    assert_follows(x, params, history)
    # Nothing of it may be left for the next call.
    assert_follows(x, SamplingParams(temperature=0.9, repetition_penalty=1.5), [3])


def test_random_combinations_follow_the_reference():
    rng = np.random.default_rng(11)
    for trial in range(150):
        size = int(rng.choice([3, 64, 257, 5000]))
        params = SamplingParams(
            temperature=float(rng.uniform(0.2, 2)),
            top_k=int(rng.choice([0, 1, 5, 70, 4000])),
            top_p=float(rng.choice([1.0, 0.95, 0.5])),
            min_p=float(rng.choice([0.0, 0.1, 0.5])),
            typical_p=float(rng.choice([1.0, 0.9, 0.3])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            frequency_penalty=float(rng.choice([0.0, 0.2])),
        )
        assert_follows(peaked(size, trial), params, rng.integers(0, size, 30).tolist())


def test_min_p_compares_with_the_best_token_that_typical_sampling_left():
    """Typical sampling drops token 0, the likeliest: nearest the entropy are the 6000 behind it."""
    logits = np.full(20_000, -np.inf, np.float32)
    logits[0], logits[1:6001], logits[6001:12001] = 0, -1.5, -2.5
    params = SamplingParams(temperature=1, typical_p=0.95, min_p=0.3, seed=1)
    sampler = Sampler(params)
    drawn = np.array([sampler.sample(logits, index=i).token for i in range(1000)])
    assert drawn.min() > 0 and drawn.max() < 12001
    # 6000 e^-1.5 = 1338.8 and 6000 e^-2.5 = 492.5 of 1832.3 in all; 0.95 of those less the first group.
    rest = 0.95 * 1832.3 - 1338.8
    assert (drawn > 6000).mean() == pytest.approx(rest / (rest + 1338.8), abs=0.04)
    assert_follows(logits, params)


def test_a_top_k_beyond_any_vocabulary_keeps_all_tokens():
    logits = peaked(1000)
    for count in (2**31 - 1, 2**31, 2**32 + 1, 2**70):  # as a C int: negative, and 1
        tokens = [
            Sampler(SamplingParams(top_k=k, seed=s)).sample(logits).token
            for s in range(40)
            for k in (0, count)
        ]
        assert tokens[::2] == tokens[1::2]


def test_a_share_that_is_reached_exactly_is_enough():
    logits = np.zeros(8, np.float32)
    for kept in range(1, 8):
        for setting in ({"top_p": kept / 8}, {"typical_p": kept / 8}, {"top_k": kept}):
            params = SamplingParams(temperature=1, **setting)
            assert drawn_with(params, 1 - 1e-9, logits) == kept - 1, setting


def test_small_temperatures_are_not_rounded():
    logits = peaked(100, spread=1.0) * np.float32(1e-4)
    assert_follows(logits, SamplingParams(temperature=1e-4), tolerance=1e-4)


def test_every_filter_compares_with_what_the_one_before_it_left():
    """Typical sampling drops the likeliest tokens of a wide field, then top-p all but a tenth of the rest."""
    logits = np.random.default_rng(2).normal(0, 1, 20_000).astype(np.float32)
    assert_follows(logits, SamplingParams(temperature=1, typical_p=0.5, top_p=0.1, min_p=0.9), tolerance=1e-4)


def test_masked_tokens_are_never_drawn():
    x = peaked(3000)
    x[np.arange(3000) % 3 != 0] = -np.inf
    for params in FILTERS.values():
        sampler = Sampler(SamplingParams(**{"temperature": 5.0, **params, "seed": 1}))
        assert all(sampler.sample(x, index=i).token % 3 == 0 for i in range(50))


def mask_of(allowed: np.ndarray) -> np.ndarray:
    """bool [vocab_size] as the sampler takes it."""
    bits = np.zeros(-(-allowed.size // 32) * 32, bool)
    bits[: allowed.size] = allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 130, 3000])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {}, {"top_p": 0.9, "top_k": 20}, {"repetition_penalty": 1.3, "min_p": 0.1}],
)
def test_a_mask_does_what_infinitely_low_logits_do(size: int, settings):
    random, x = np.random.default_rng(size), peaked(size, spread=1.0)
    sampler, history = Sampler(SamplingParams(**{"temperature": 1.5, **settings, "seed": 5})), [0] * 3
    for index in range(30):
        allowed = random.random(size) < random.choice([0.02, 0.5, 1.0])
        allowed[random.integers(size)] = True
        wanted = sampler.sample(np.where(allowed, x, -np.inf).astype(np.float32), history, index=index)
        assert sampler.sample(x, history, index=index, allowed=mask_of(allowed)) == wanted
        assert allowed[wanted.token]


def test_a_mask_leaves_logprobs_alone_and_may_not_forbid_everything():
    """They are those of the model, as beside every other filter."""
    x = peaked(100)
    best = int(np.argmax(x))
    sampler = Sampler(SamplingParams(temperature=0, logprobs=3))
    masked = sampler.sample(x, allowed=mask_of(np.arange(100) != best))
    assert masked.token != best and masked.top == sampler.sample(x).top
    assert masked.logprob == pytest.approx(
        float(np.log(softmax(x.astype(np.float64))[masked.token])), abs=1e-4
    )
    with pytest.raises(NativeError, match="No token is allowed"):
        sampler.sample(x, allowed=mask_of(np.zeros(100, bool)))
    with pytest.raises(EdgeError, match=r"uint32 \[4\]"):
        sampler.sample(x, allowed=np.ones(100, bool))


def test_logits_stay_unchanged():
    x = peaked(500)
    before = x.copy()
    Sampler(SamplingParams(repetition_penalty=2, logit_bias={3: 9.0}, top_p=0.5)).sample(x, [1, 2])
    assert np.array_equal(x, before)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 25, "min_p": 0.02}, {"typical_p": 0.7}])
def test_draws_have_the_right_frequencies(settings):
    """Chi-square of 20000 draws against the reference's probabilities."""
    x = peaked(300, seed=4, spread=1.0)
    x -= np.where(x > 6, 4, 0).astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=99, **settings)
    p, sampler, draws = reference(x, params), Sampler(params), 20000
    counts = np.bincount([sampler.sample(x, index=i).token for i in range(draws)], minlength=x.size)
    assert counts[p == 0].sum() == 0
    common = p * draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_square, degrees = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    # Five standard deviations of the chi-square distribution; the seed is fixed.
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


def test_a_seed_repeats_and_no_seed_does_not():
    x = peaked(2000, spread=1)

    def draws(seed):
        sampler = Sampler(SamplingParams(temperature=2.0, seed=seed))
        return [sampler.sample(x, index=i).token for i in range(30)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("size", [1, 10, 64, 5000])
def test_logprobs_are_those_of_the_plain_distribution(size):
    x = peaked(size)
    truth = np.log(softmax(x.astype(np.float64)))
    params = SamplingParams(temperature=0.5, top_k=3, logprobs=5, logit_bias={0: -20.0})
    sampled = Sampler(params).sample(x)
    assert sampled.logprob == pytest.approx(truth[sampled.token], abs=1e-5)
    order = best_first(x)[: min(5, size)].tolist()
    assert [token for token, _ in sampled.top] == order
    assert [value for _, value in sampled.top] == pytest.approx(truth[order].tolist(), abs=1e-5)


def test_logprobs_of_masked_tokens_are_left_out():
    x = np.full(100, -np.inf, np.float32)
    x[[4, 90]] = [0.0, 1.0]
    sampled = Sampler(SamplingParams(logprobs=MAX_LOGPROBS)).sample(x)
    assert [token for token, _ in sampled.top] == [90, 4]


def test_no_logprob_unless_asked_for():
    assert Sampler(SamplingParams()).sample(peaked(100)).logprob is None
    x = peaked(100)
    chosen = Sampler(SamplingParams(logprobs=0)).sample(x)
    assert chosen.top == ()
    assert chosen.logprob == pytest.approx(np.log(softmax(x.astype(np.float64)))[chosen.token], abs=1e-5)


def test_the_penalty_window_counts_the_last_tokens():
    x = np.array([5.0, 4.9, 4.8], np.float32)
    params = SamplingParams(temperature=0, presence_penalty=1, penalty_window=2)
    assert Sampler(params).sample(x, [0, 1, 2]).token == 0
    assert Sampler(params).sample(x, np.array([1, 2, 0], np.int32)).token == 1
    assert (
        Sampler(SamplingParams(temperature=0, presence_penalty=1, penalty_window=0)).sample(x, [0]).token == 0
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_damaged_logits_are_refused(bad, at):
    x = np.zeros(100, np.float32)
    x[at] = bad
    with pytest.raises(NativeError, match="NaN or infinity"):
        Sampler(SamplingParams()).sample(x)


def test_logits_that_allow_no_token_are_refused():
    with pytest.raises(NativeError, match="No token is allowed"):
        Sampler(SamplingParams()).sample(np.full(70, -np.inf, np.float32))
    with pytest.raises(NativeError, match="make a logit infinite"):
        Sampler(SamplingParams(logit_bias={2: 3e38})).sample(np.full(4, 3e38, np.float32))
    bias = dict.fromkeys(range(4), -math.inf)
    with pytest.raises(NativeError, match="forbids every token"):
        Sampler(SamplingParams(logit_bias=bias)).sample(np.zeros(4, np.float32))


def test_ids_outside_the_vocabulary_are_refused():
    x = np.zeros(10, np.float32)
    for history in ([10], [-1]):
        with pytest.raises(TokenizerError, match="history"):
            Sampler(SamplingParams(presence_penalty=1)).sample(x, history)
    with pytest.raises(TokenizerError, match="logit bias"):
        Sampler(SamplingParams(logit_bias={10: 1.0})).sample(x)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"typical_p": 2}, "typical_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"penalty_window": -1}, "penalty_window"),
        ({"seed": 0.5}, "seed"),
        ({"logprobs": MAX_LOGPROBS + 1}, "logprobs"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {2**31: 1.0}}, "token id 2147483648"),
        ({"logit_bias": {1: 10**400}}, "logit_bias"),
        ({"logit_bias": {1: 1e39}}, "logit_bias"),
        ({"temperature": 10**400}, "temperature"),
        ({"frequency_penalty": 1e39}, "frequency_penalty"),
    ],
)
def test_bad_parameters_are_named(settings, word):
    with pytest.raises(EdgeError, match=word):
        SamplingParams(**settings)


def test_extreme_temperatures():
    x = peaked(1000)
    assert Sampler(SamplingParams(temperature=1e-30)).sample(x).token == int(np.argmax(x))
    seen = {Sampler(SamplingParams(temperature=1e30, seed=s)).sample(x).token for s in range(200)}
    assert len(seen) > 100


def test_extreme_logits():
    for scale in (1e30, 1e-30, 3e38):
        x = np.array([1.0, -1.0, 0.5, 0.25], np.float32) * np.float32(scale)
        for params, typical in itertools.product(({}, {"top_p": 0.5}, {"top_k": 2}), (1.0, 0.5)):
            token = (
                Sampler(SamplingParams(temperature=1.0, typical_p=typical, seed=3, **params)).sample(x).token
            )
            assert 0 <= token < 4 and (scale < 1 or token == 0)
