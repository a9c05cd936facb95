"""Acceptance of a second token, on networks whose guesses are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.errors import ConfigError
from edge.model.network.decoder import Decoder, dense_attention
from edge.model.network.multi_token import MultiTokenPrediction
from edge.train.acceptance import Acceptance, measure_acceptance
from edge.train.attention import packed
from tests.configs import one_layer

SIZE = 64


def follower(step: int, guess_step: int) -> tuple[Decoder, MultiTokenPrediction]:
    """A network whose next token is always the last one + step, and guesses that it is + guess_step."""
    decoder = Decoder(one_layer(vocab_size=SIZE, hidden_size=SIZE))
    guess = MultiTokenPrediction(decoder.config)
    with torch.no_grad():
        for parameter in [*decoder.model.layers.parameters(), *guess.layer.parameters()]:
            parameter.zero_()
        decoder.model.embed_tokens.weight.copy_(torch.eye(SIZE))
        decoder.lm_head.weight.copy_(torch.eye(SIZE).roll(step, 0))
        # The guess sees the embedding of the token before it, in the first half of its input.
        guess.eh_proj.weight.copy_(
            torch.cat([torch.eye(SIZE).roll(guess_step - step, 0), torch.zeros(SIZE, SIZE)], 1)
        )
    return decoder, guess


def counting(step: int, length: int, start: int = 0) -> np.ndarray:
    return ((start + step * np.arange(length)) % SIZE).astype(np.uint16)


def test_known_guesses_are_counted():
    right = [counting(3, 20), counting(3, 2), counting(3, 7, start=5)]
    assert measure_acceptance(*follower(3, 3), right) == Acceptance(23, 23, 23, 23)
    assert measure_acceptance(*follower(3, 4), right) == Acceptance(23, 0, 0, 23)
    assert measure_acceptance(*follower(4, 3), right) == Acceptance(23, 0, 23, 0)
    # Guesses and network agree with each other on a text that goes another way.
    found = measure_acceptance(*follower(4, 4), right)
    assert found.shares() == {"own": 1.0, "text": 0.0, "network": 0.0}


def test_a_packed_network_is_measured_as_any_other():
    decoder, guess = follower(3, 3)
    attend = packed(dense_attention)
    decoder.use_attention(attend)
    guess.use_attention(attend)
    assert measure_acceptance(decoder, guess, [counting(3, 20)]) == Acceptance(18, 18, 18, 18)


def test_a_half_right_text_has_half_the_share():
    """Where the text turns, both are wrong about it and right about each other."""
    text = np.array([0, 3, 6, 9, 10, 11, 12, 15], np.uint16)
    assert measure_acceptance(*follower(3, 3), [text]) == Acceptance(6, 6, 3, 3)


def test_long_documents_are_read_in_pieces():
    # Of 20 tokens in pieces of 8, 8 and 4, the first two of each are not guessed.
    assert measure_acceptance(*follower(3, 3), [counting(3, 20)], length=8).places == 14
    assert measure_acceptance(*follower(3, 3), [counting(3, 20)] * 9, length=8, places=15).places == 20


def test_texts_without_a_second_token_are_refused():
    with pytest.raises(ConfigError, match="3 tokens or more"):
        measure_acceptance(*follower(3, 3), [counting(3, 2)])
