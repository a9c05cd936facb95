"""Perplexity against a plain evaluation of the same protocol, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.engine.session import Session
from edge.errors import EdgeError
from edge.measure.perplexity import perplexity

TEXT = (
    "The lighthouse stood on a rock that the sea covered twice a day. Its keeper had not spoken to anybody "
    "since the winter, and when the boat came in April he found that he had forgotten the word for bread."
)


def log_probability(model, context, token) -> float:
    logits = Session(model.executor).prefill(context).astype(np.float64)
    return float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


def plain(model, ids, window, stride, bos) -> tuple[float, int]:
    """(mean negative log-likelihood, number of scored tokens)"""
    lead = [model.tokenizer.bos_id] if bos else []
    body = window - len(lead)
    losses, done = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + body, len(ids))
        for i in range(done, end):
            context = lead + ids[begin:i]
            if context:
                losses.append(-log_probability(model, context, ids[i]))
        done = end
        if end == len(ids):
            break
    return float(np.mean(losses)), len(losses)


@pytest.mark.parametrize(
    ("window", "stride", "bos"),
    [
        (16, 8, False),
        (16, 16, False),
        (16, 15, True),
        (16, 1, False),
        (12, 5, True),
        (100, 50, False),
        (2, 1, False),
    ],
)
def test_it_equals_the_plain_evaluation(smollm2, window, stride, bos):
    ids = smollm2.tokenizer.encode(TEXT)[:30]
    result = perplexity(smollm2, ids, window=window, stride=stride, bos=bos)
    nll, count = plain(smollm2, ids, window, stride, bos)
    assert result.tokens == count
    # 8-bit activations make the logits of one chunking differ a little from those of another.
    assert result.nll == pytest.approx(nll, abs=0.02)
    assert result.perplexity == pytest.approx(math.exp(result.nll))


def test_windows_longer_than_a_batch(smollm2):
    ids = smollm2.tokenizer.encode(TEXT * 12)
    assert len(ids) > smollm2.executor.max_batch + 100
    whole = perplexity(smollm2, ids, window=len(ids), stride=len(ids))
    assert whole.tokens == len(ids) - 1
    assert whole.perplexity < perplexity(smollm2, ids, window=16).perplexity / 3, "a repeated text is easy"


def test_max_tokens_takes_the_beginning(smollm2):
    ids = smollm2.tokenizer.encode(TEXT)[:30]
    found, wanted = perplexity(smollm2, ids, max_tokens=9), perplexity(smollm2, ids[:9])
    assert (found.tokens, found.nll) == (8, wanted.nll)


def test_disjoint_windows_leave_out_their_first_tokens(smollm2):
    ids = smollm2.tokenizer.encode(TEXT)[:33]
    assert perplexity(smollm2, ids, window=8, stride=8).tokens == 33 - 5
    assert perplexity(smollm2, ids, window=9, stride=8, bos=True).tokens == 33


def test_the_result_states_its_protocol(smollm2):
    seen = []
    result = perplexity(
        smollm2, TEXT, window=16, stride=4, max_tokens=20, progress=lambda *now: seen.append(now)
    )
    for part in ("16 tokens", "stride 4", "no BOS", "19 of 20"):
        assert part in result.protocol
    assert result.seconds > 0
    assert seen[-1] == (20, 20) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_defaults_fit_the_model(smollm2):
    assert "windows of 2048 tokens, stride 1024" in perplexity(smollm2, TEXT).protocol


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"window": 1}, "window"),
        ({"window": 10**6}, "window"),
        ({"window": 16, "stride": 0}, "stride"),
        ({"window": 16, "stride": 17}, "stride"),
        ({"window": 16, "stride": 16, "bos": True}, "stride"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1}, "none to score"),
    ],
)
def test_contradictions_are_refused(smollm2, options, word):
    with pytest.raises(EdgeError, match=word):
        perplexity(smollm2, TEXT, **options)


def test_an_empty_text_is_refused(smollm2):
    with pytest.raises(EdgeError, match="longer"):
        perplexity(smollm2, "")


def test_real_text_is_more_likely_than_noise(smollm2, shared_data):
    text = (shared_data / "wikitext-2-raw.valid.txt").read_text(encoding="utf-8")
    real = perplexity(smollm2, text, window=512, max_tokens=1500)
    assert 8 < real.perplexity < 40
    noise = np.random.default_rng(0).integers(0, 49000, 600).tolist()
    assert perplexity(smollm2, noise, window=512).perplexity > 1000
