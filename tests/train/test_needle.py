"""The needle test: what its data ask, what a window sees, and (slow) that sparse attention finds it."""

from __future__ import annotations

import pytest
import torch

from edge.model.network.decoder import fused_attention
from edge.train import needle


@pytest.mark.parametrize(("span", "length"), [(needle.SPAN, 100), (16, 300)])
@pytest.mark.parametrize("ask_late", [False, True])
def test_every_question_has_its_fact_before_it(ask_late: bool, span: int, length: int):
    tokens, targets = needle.recall_batch(3, length, 8, torch.Generator().manual_seed(0), ask_late, span)
    assert tokens.shape == targets.shape == (3, length)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        asked = [place for place, target in enumerate(wanted) if target != needle.IGNORED]
        assert len(asked) == 8
        assert not ask_late or asked == list(range(length - 8, length))
        for place in asked:
            key, value = row[place] - needle.QUESTIONS_AT, wanted[place] - needle.ANSWERS_AT
            assert 0 <= key < needle.KEYS and 0 <= value < needle.VALUES
            assert row[:place].count(key * needle.VALUES + value) == span
        facts = {token for token in row if token < needle.QUESTIONS_AT}
        assert len({fact // needle.VALUES for fact in facts}) == len(facts) == 8, "no key has two values"
        assert sum(token >= needle.NOISE_AT for token in row) == length - 8 * (span + 1)


def test_window_sees_its_blocks_only():
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 100, 8, generator=make) for _ in range(3))
    mask, positions = torch.ones(100, 100, dtype=torch.bool).tril(), torch.arange(100)
    found = needle.window_attention(2)(q, k, v, mask, positions)
    alone = fused_attention(
        q[:, 90:91], k[:, 64:91], v[:, 64:91], torch.ones(1, 27, dtype=torch.bool), positions
    )
    torch.testing.assert_close(found[:, 90:91], alone)


def test_training_begins_to_learn():
    """Some steps of a short phase, and one long and sparse step, lower the loss below guessing."""
    decoder, make = needle.new_decoder(512, 0), torch.Generator().manual_seed(0)
    phase = needle.Phase(40, (32,), 1024, 4e-3)
    losses = list(needle.run_phase(decoder, phase, needle.KINDS["dense"], make))
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    before = [parameter.clone() for parameter in decoder.parameters()]
    long = needle.Phase(5, (512,), 512, 1e-3)
    assert next(needle.run_phase(decoder, long, needle.KINDS["sparse"], make)) > 0
    assert all((old != new).any() for old, new in zip(before, decoder.parameters(), strict=True))


@pytest.mark.slow
def test_sparse_attention_finds_what_a_window_misses():
    """At 4 and 16 times the dense length sparse attention is not below dense, and windows are far below."""
    accuracy = needle.run()["long"]["accuracy"]
    for length, least in (("1024", 0.9), ("4096", 0.75)):
        found = accuracy[length]
        assert found["sparse"] > least and found["sparse"] >= found["dense"], (length, found)
        for window in ("window", "wide window"):
            assert found[window] < 0.4 * found["sparse"], (length, found)
