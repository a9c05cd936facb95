"""Packed attention against each document alone: values, gradients, and no sight of another document."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from edge.config import SparseConfig
from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, Decoder, dense_attention, fused_attention
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.multi_token import MultiTokenPrediction
from edge.train import attention
from edge.train.attention import document_lengths, packed
from tests.configs import one_layer

SPARSE = SparseConfig(
    kernel_size=4, kernel_stride=2, init_blocks=1, block_size=4, window_size=4, topk=3, dense_len=12
)
PACKINGS = {
    "odd": [[5, 1, 31], [37], [1, 1, 35]],
    "one each": [[37], [37]],
    "short": [[11, 12, 9, 1, 4], [12, 12, 1, 12]],
    "one token": [[1], [1]],
    "a token each": [[1, 1, 1], [2, 1]],
}


def places(rows: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def alone(attend: Attend, q: Tensor, k: Tensor, v: Tensor, rows: list[list[int]]) -> Tensor:
    """The reference: `attend` on every document of every row, one after the other."""
    out = []
    for row, lengths in enumerate(rows):
        parts, at = [], 0
        for n in lengths:
            document = (x[row, :, at : at + n] for x in (q, k, v))
            parts.append(attend(*document, causal(n), torch.arange(n)))
            at += n
        out.append(torch.cat(parts, 1))
    return torch.stack(out)


def random_inputs(rows: list[list[int]]) -> list[Tensor]:
    make = torch.Generator().manual_seed(3)
    n = sum(rows[0])
    return [torch.randn(len(rows), h, n, 16, generator=make).requires_grad_() for h in (4, 2, 2)]


@pytest.mark.parametrize("longest_masked", [0, 768])
@pytest.mark.parametrize("rows", PACKINGS.values(), ids=PACKINGS.keys())
@pytest.mark.parametrize("attend", [fused_attention, SparseAttention(SPARSE)], ids=["dense", "sparse"])
def test_values_and_gradients_are_those_of_each_document_alone(attend, rows, longest_masked, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_MASKED", longest_masked)
    inputs = random_inputs(rows)
    wanted = alone(dense_attention if attend is fused_attention else attend, *inputs, rows)
    found = packed(attend)(*inputs, causal(sum(rows[0])), places(rows))
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4))
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_sparse_case_is_sparse():
    rows = PACKINGS["odd"]
    inputs = random_inputs(rows)
    sparse, dense = (
        packed(a)(*inputs, causal(37), places(rows)) for a in (SparseAttention(SPARSE), dense_attention)
    )
    assert (sparse - dense).abs().max() > 0.01


def test_a_row_that_goes_on_with_a_document_is_one_more_document():
    positions = torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]])
    assert document_lengths(positions) == [4, 2, 2]
    assert positions[1].tolist() == [4, 5, 0, 1]


@pytest.mark.parametrize("attend", [dense_attention, SparseAttention(SPARSE)], ids=["dense", "sparse"])
def test_without_packing_it_is_the_attention_itself(attend):
    """Positions that all rows share, and a prompt in two pieces through a cache."""
    config = one_layer(vocab_size=50, num_hidden_layers=2)
    torch.manual_seed(0)
    decoder, tokens = Decoder(config), torch.randint(50, (2, 23))
    wanted = decoder.use_attention(attend)(tokens)
    decoder.use_attention(packed(attend))
    torch.testing.assert_close(decoder(tokens), wanted)
    cache = GrowingCache(config)
    pieces = [decoder(tokens[:, part], cache=cache) for part in (slice(0, 14), slice(14, 23))]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted)


def test_boundaries_are_read_once_a_pass_and_again_when_they_change(monkeypatch):
    calls = []
    counted = attention.document_lengths
    monkeypatch.setattr(attention, "document_lengths", lambda p: calls.append(p.shape) or counted(p))
    config = one_layer(vocab_size=50, num_hidden_layers=3)
    torch.manual_seed(0)
    decoder = Decoder(config).use_attention(packed(dense_attention))
    decoder.model.gradient_checkpointing = True
    tokens, positions = torch.randint(50, (2, 9)), places([[4, 5], [9]])
    decoder(tokens, positions).sum().backward()
    assert len(calls) == 1
    positions.copy_(places([[2, 7], [1, 8]]))
    found = copy.deepcopy(decoder)(tokens, positions)
    second = decoder(tokens, positions)
    assert len(calls) == 3
    torch.testing.assert_close(second[0, 2:], decoder.use_attention(dense_attention)(tokens[0, 2:]))
    torch.testing.assert_close(second, found)


def test_a_compiled_decoder_gives_the_same():
    config = one_layer(vocab_size=50)
    torch.manual_seed(0)
    decoder = Decoder(config).use_attention(packed(dense_attention))
    tokens, positions = torch.randint(50, (2, 9)), places([[4, 5], [1, 8]])
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, positions), decoder(tokens, positions))


def test_guesses_of_the_token_after_next_see_their_own_document_only():
    config = one_layer(vocab_size=50)
    torch.manual_seed(0)
    decoder = Decoder(config).use_attention(packed(dense_attention))
    guess = MultiTokenPrediction(config).use_attention(packed(dense_attention))
    lengths = [[5, 6, 1, 3], [15]]
    tokens, positions = torch.randint(50, (2, 15)), places(lengths)

    def guesses(tokens: Tensor, positions: Tensor | None) -> Tensor:
        return guess(decoder, tokens, decoder.trunk(tokens, positions).stream[-1], positions)

    found = guesses(tokens, positions)
    assert found.shape == (2, 14, 50)
    for row, documents in enumerate(lengths):
        ends = torch.tensor(documents).cumsum(0).tolist()
        for begin, end in zip([0, *ends], ends, strict=False):
            if end - begin < 2:
                continue
            inside = slice(begin, end - 1)
            torch.testing.assert_close(
                found[row, inside], guesses(tokens[row, None, begin:end], places([[end - begin]]))[0]
            )
            others = (tokens + 1) % 50
            others[row, begin:end] = tokens[row, begin:end]
            assert torch.equal(guesses(others, positions)[row, inside], found[row, inside])


def test_without_positions_a_guess_is_what_it_was():
    config = one_layer(vocab_size=50)
    torch.manual_seed(0)
    decoder, guess = Decoder(config), MultiTokenPrediction(config)
    tokens = torch.randint(50, (2, 9))
    stream = decoder.trunk(tokens).stream[-1]
    assert torch.equal(guess(decoder, tokens, stream), guess(decoder, tokens, stream, places([[9], [9]])))
