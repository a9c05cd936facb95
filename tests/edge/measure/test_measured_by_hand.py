"""Perplexity and divergence over sham models whose logits depend on all that they have read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from edge.errors import EdgeError, NativeError
from edge.measure.divergence import divergence
from edge.measure.perplexity import perplexity

VOCAB, BOS = 11, 7


class Sham:
    """An executor; asked: positions whose logits were asked for. longest: tokens of the longest call."""

    def __init__(self, seed, max_batch, logits=None):
        self.seed, self.max_batch, self.asked, self.longest = seed, max_batch, 0, 0
        self.logits = logits or self.random

    def random(self, history):
        return 2 * np.random.default_rng([self.seed, *history]).standard_normal(VOCAB)

    def new_cache(self):
        return []

    def truncate(self, cache, length):
        del cache[length:]

    def forward(self, steps):
        (step,) = steps
        assert 0 < len(step.tokens) <= self.max_batch
        self.longest = max(self.longest, len(step.tokens))
        rows = []
        for token in step.tokens:
            step.cache.append(int(token))
            rows.append(self.logits(step.cache))
        if step.logits == "none":
            return [SimpleNamespace(logits=None, error=None)]
        self.asked += len(rows)
        return [SimpleNamespace(logits=np.array(rows, np.float32), error=None)]


def sham(seed=0, context=64, max_batch=5, logits=None, bos=BOS):
    tokenizer = SimpleNamespace(bos_id=bos, encode=lambda text, add_bos: [ord(c) % VOCAB for c in text])
    executor = Sham(seed, max_batch, logits)
    config = SimpleNamespace(vocab_size=VOCAB)
    return SimpleNamespace(context=context, tokenizer=tokenizer, executor=executor, config=config)


def log_probabilities(model, history):
    logits = model.executor.logits([int(token) for token in history]).astype(np.float32).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


IDS = np.random.default_rng(5).integers(0, VOCAB, 23).tolist()


@pytest.mark.parametrize(
    ("window", "stride", "bos"),
    [(8, 3, False), (8, 7, True), (7, 7, False), (2, 1, False), (2, 1, True), (23, 4, False), (40, 20, True)],
)
def test_perplexity(window, stride, bos):
    model, lead, losses, seen = sham(), [BOS] if bos else [], [], []
    for i in range(len(IDS)):
        body = window - len(lead)
        begin = 0
        while begin + body <= i:  # the first window that has this token
            begin += stride
        if history := [*lead, *IDS[begin:i]]:
            losses.append(-log_probabilities(model, history)[IDS[i]])
    found = perplexity(
        model, IDS, window=window, stride=stride, bos=bos, progress=lambda *now: seen.append(now)
    )
    assert found.tokens == len(losses) == model.executor.asked, "nothing is computed that is not scored"
    assert found.nll == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    ends = [min(begin + body, 23) for begin in range(0, 23, stride)]
    assert seen == [(end, 23) for end in ends[: ends.index(23) + 1]]
    front = "BOS" if bos else "no BOS"
    assert found.protocol == (
        f"sliding windows of {window} tokens, stride {stride}, {front} in front, "
        f"{found.tokens} of 23 tokens scored"
    )


@pytest.mark.parametrize(
    ("context", "options", "words"),
    [
        (6, {}, "windows of 6 tokens, stride 3, no BOS"),
        (3000, {}, "windows of 2048 tokens, stride 1024,"),
        (64, {"window": 9}, "windows of 9 tokens, stride 4,"),
        (64, {"window": 64, "stride": 64}, "windows of 64 tokens, stride 64,"),
        (64, {"window": 2, "stride": 1}, "windows of 2 tokens, stride 1,"),
        (64, {"window": 3, "stride": 2, "bos": True}, "stride 2, BOS in front"),
    ],
)
def test_windows_of_a_perplexity(context, options, words):
    assert words in perplexity(sham(context=context), IDS[:9], **options).protocol


def test_the_shortest_texts():
    assert perplexity(sham(), [4, 5]).tokens == perplexity(sham(), [4], bos=True).tokens == 1
    assert perplexity(sham(), IDS, max_tokens=1, bos=True).tokens == 1
    with pytest.raises(EdgeError, match="has 1 tokens, which leaves none"):
        perplexity(sham(), [4])
    with pytest.raises(EdgeError, match="no BOS token: leave it out"):
        perplexity(sham(bos=None), IDS, bos=True)
    assert divergence(sham(), sham(1), [4, 5]).tokens == 1
    with pytest.raises(EdgeError, match="has 1 tokens, which leaves none"):
        divergence(sham(), sham(1), [4])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_no_number_holds():
    """A loss of 1000 nats; logits that are no numbers."""
    certain = sham(logits=lambda history: 1000.0 * (np.arange(VOCAB) == 3))
    found = perplexity(certain, [1, 2])
    assert (found.nll, found.perplexity) == (1000, math.inf)
    assert divergence(certain, sham(), [1, 2]).perplexity_a == math.exp(700)
    for value in (math.nan, math.inf):
        with pytest.raises(NativeError, match="contain NaN or infinity"):
            perplexity(sham(logits=lambda history, value=value: np.full(VOCAB, value)), [1, 2])


@pytest.mark.parametrize("window", [None, 2, 5, 12])
def test_divergence(window):
    a, b, seen = sham(1, 20, 5), sham(2, 12, 3), []
    size, kl, agreed, losses = window or 12, [], [], []
    for i in range(1, 23):
        history = IDS[i // size * size : i]
        if history:
            left, right = (log_probabilities(model, history) for model in (a, b))
            kl.append((np.exp(left) * (left - right)).sum())
            agreed.append(left.argmax() == right.argmax())
            losses.append((-left[IDS[i]], -right[IDS[i]]))
    found = divergence(a, b, IDS, window=window, progress=lambda *now: seen.append(now))
    assert found.tokens == len(kl)
    assert (found.kl_divergence, found.kl_max) == pytest.approx((np.mean(kl), max(kl)), rel=1e-6)
    wanted = np.percentile(kl, (50, 90, 99)).tolist()
    assert [found.kl_p50, found.kl_p90, found.kl_p99] == pytest.approx(wanted, rel=1e-6)
    assert found.top1_agreement == pytest.approx(np.mean(agreed))
    perplexities = np.exp(np.mean(losses, axis=0)).tolist()
    assert [found.perplexity_a, found.perplexity_b] == pytest.approx(perplexities, rel=1e-6)
    assert found.protocol.startswith(f"disjoint windows of {size} tokens, {len(kl)} positions")
    assert a.executor.longest == b.executor.longest == min(size - 1, 3)
    assert seen == sorted(seen) and {total for _, total in seen} == {22}


def test_the_window_of_a_divergence():
    for context, wanted in ((600, 512), (300, 300)):
        a, b = sham(1, 4000, 1000), sham(2, context, 1000)
        found = divergence(a, b, IDS * 4)
        assert f"windows of {wanted} tokens" in found.protocol and a.executor.longest == 64
    for window in (1, 13):
        with pytest.raises(EdgeError, match=f"from 2 to the shorter context of 12 tokens, got {window}"):
            divergence(sham(1, 12), sham(2, 20), IDS, window=window)
    assert divergence(sham(1), sham(2), IDS, max_tokens=9).tokens == 8
