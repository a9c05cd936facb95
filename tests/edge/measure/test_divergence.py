"""KL divergence and agreement against a plain computation, token by token."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import edge
from edge.engine.session import Session
from edge.errors import EdgeError
from edge.measure.divergence import divergence
from edge.measure.perplexity import perplexity

TEXT = "The ferry left at six. Nobody on the quay could say who had been on board, or why it was empty."


@pytest.fixture(scope="module")
def exact(smollm2_gguf):
    with edge.load(smollm2_gguf, threads=2, activations="float32", context=512) as model:
        yield model


def log_probabilities(model, context):
    logits = Session(model.executor).prefill(context).astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_values(smollm2, exact):
    ids, window = smollm2.tokenizer.encode(TEXT, add_bos=False), 11
    kl, agreed = [], 0
    for begin in range(0, len(ids), window):
        piece = ids[begin : begin + window]
        for end in range(1, len(piece)):
            a, b = (log_probabilities(model, piece[:end]) for model in (exact, smollm2))
            kl.append(float((np.exp(a) * (a - b)).sum()))
            agreed += int(a.argmax() == b.argmax())
    found = divergence(exact, smollm2, TEXT, window=window)
    assert found.tokens == len(kl)
    assert found.kl_divergence == pytest.approx(np.mean(kl), rel=1e-6) and found.kl_divergence > 1e-5
    assert found.kl_max == pytest.approx(max(kl), rel=1e-6)
    wanted = np.percentile(kl, (50, 90, 99))
    assert [found.kl_p50, found.kl_p90, found.kl_p99] == pytest.approx(wanted.tolist(), rel=1e-6)
    assert found.top1_agreement == agreed / len(kl)
    wanted = perplexity(smollm2, TEXT, window=window, stride=window)
    assert found.perplexity_b == pytest.approx(wanted.perplexity, rel=1e-6)


def test_a_model_agrees_with_itself(smollm2):
    found = divergence(smollm2, smollm2, TEXT, max_tokens=5)
    ids = smollm2.tokenizer.encode(TEXT, add_bos=False)[:5]
    assert (found.tokens, found.perplexity_a) == (4, divergence(smollm2, smollm2, ids).perplexity_a)
    assert (found.kl_divergence, found.kl_max, found.top1_agreement) == (0, 0, 1)
    assert found.perplexity_a == found.perplexity_b


def test_decode_steps_are_compared_with_a_step_of_one(smollm2, exact, monkeypatch):
    wanted, rows = divergence(exact, smollm2, TEXT), set()
    forward = type(exact.executor).forward

    def watched(executor, steps):
        rows.update(len(step.tokens) for step in steps)
        return forward(executor, steps)

    monkeypatch.setattr(type(exact.executor), "forward", watched)
    found = divergence(exact, smollm2, TEXT, step=1)
    assert rows == {1} and found.tokens == wanted.tokens
    assert found.kl_divergence == pytest.approx(wanted.kl_divergence, rel=1e-6)


def test_models_that_split_the_text_otherwise_are_refused(smollm2, exact):
    """Token by token they would be compared over different texts; token ids are the same for both."""

    class Shouting:
        def encode(self, text, **options):
            return exact.tokenizer.encode(text.upper(), **options)

    other = SimpleNamespace(
        config=exact.config, context=exact.context, executor=exact.executor, tokenizer=Shouting()
    )
    for pair in ((smollm2, other), (other, smollm2)):
        with pytest.raises(EdgeError, match="split the text into different tokens"):
            divergence(*pair, TEXT)
    ids = smollm2.tokenizer.encode(TEXT, add_bos=False)[:4]
    assert divergence(smollm2, other, ids).tokens == 3


def test_what_can_not_be_compared(smollm2, exact):
    with pytest.raises(EdgeError, match="leaves none to compare"):
        divergence(smollm2, exact, "")
    with pytest.raises(EdgeError, match="window must be from 2 to the shorter context of 512"):
        divergence(smollm2, exact, TEXT, window=513)
    with (
        edge.load("random:minicpm4-0.5b", context=64) as other,
        pytest.raises(EdgeError, match="vocabularies of"),
    ):
        divergence(smollm2, other, TEXT)
