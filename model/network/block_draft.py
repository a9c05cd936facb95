"""Block drafts (DSpark, and DFlash, arXiv 2602.06036), as plainly as they can be written.

As in `edge.model.network.draft`, submodules carry the names of a draft bundle's tensors, and embedding and
head are a decoder's. `DraftConfig` says what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config.draft import DraftConfig
from edge.config.rope_regime import follow_regime
from edge.model.network.decoder import Decoder, Layer, RMSNorm, View
from edge.model.network.draft import draft_layers, layer_shape, load
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.rope import RotaryEmbedding


class MarkovHead(nn.Module):
    """What a token adds to the logits of the one behind it: W2 W1[token]. rows: of the draft's head."""

    def __init__(self, tokens: int, rows: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(tokens, rank)
        self.markov_w2 = nn.Linear(rank, rows, bias=False)


class Projection(nn.Module):
    """A linear layer with one output, whose weight is a vector, as in a draft bundle."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(columns))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] -> [...]."""
        return x @ self.weight + self.bias[0]


class ConfidenceHead(nn.Module):
    """The logit of the chance that a guess is right. columns: of a state, and of W1."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.proj = Projection(columns)


class BlockDraft(nn.Module):
    """Guesses the tokens behind an anchor, the last token of a sequence, in one pass:

        draft.remember(hidden_of(trunk, config), positions, cache)  # of all tokens before the anchor
        states = draft(draft.block(anchor), positions, cache)
        logits = draft.logits(states[row]) + draft.bias(token before the one that the row tells)

    decoder: the target, of which nothing becomes a parameter here. Its context is the draft's.
    """

    def __init__(self, config: DraftConfig, decoder: Decoder) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        plain = layer_shape(config)
        self.config = config
        self.shape = replace(plain, rope=follow_regime(plain.rope, decoder.config.rope))
        self._target = (decoder,)  # in a tuple: no submodule
        self.fc = nn.Linear(config.fc_columns, size, bias=False)
        self.input_norm2 = RMSNorm(size, eps)
        self.layers = draft_layers(config, self.shape)
        self.rotary = RotaryEmbedding(self.shape, decoder.context)
        self.norm = RMSNorm(size, eps)
        rows = config.head_rows
        self.lm_head = None if rows is None else nn.Linear(size, rows, bias=False)
        rank = config.markov_rank
        self.markov_head = MarkovHead(config.vocab_size, rows or config.vocab_size, rank) if rank else None
        self.confidence_head = ConfidenceHead(size + rank) if config.confidence else None

    @classmethod
    def from_tensors(cls, config: DraftConfig, decoder: Decoder, tensors: Mapping[str, Tensor]) -> BlockDraft:
        """A draft over these float tensors; CheckpointError for a missing, surplus or misshapen one."""
        with torch.device("meta"):
            draft = cls(config, decoder)
        draft.rotary = RotaryEmbedding(draft.shape, decoder.context)
        load(draft, tensors)
        return draft

    def block(self, anchor: Tensor) -> Tensor:
        """Anchors, int [...] -> the tokens of their blocks [..., block_size]."""
        masks = torch.full_like(anchor, self.config.mask_token)
        return torch.stack([anchor, *[masks] * (self.config.block_size - 1)], dim=-1)

    def remember(self, hidden: Tensor, positions: Tensor, cache: GrowingCache) -> None:
        """Append keys and values of n tokens. hidden: [n, config.hidden_columns], the target's residual
        streams after the taps, one behind the other. positions: int [n].
        """
        context, view = self.input_norm2(self.fc(hidden)), self._view(positions, None)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.self_attn.keys_and_values(context, view, cache)
        cache.advance(hidden.shape[-2])

    def forward(
        self, tokens: Tensor, positions: Tensor, cache: GrowingCache, mask: Tensor | None = None
    ) -> Tensor:
        """States [..., n, hidden] of the rows of a block, behind the output norm; the cache stays as it is.

        tokens: int [..., n]. positions: int [n]. mask: bool [n, rows of the cache + n]; by default all that
        `config.window` lets the last row see.
        """
        n = tokens.shape[-1]
        if mask is None:
            mask = torch.ones(n, cache.length + n, dtype=torch.bool, device=tokens.device)
            if self.config.window is not None:
                mask[:, : max(0, cache.length + n - self.config.window)] = False
        x, view = self._target[0].model.embed(tokens).to(self.fc.weight.dtype), self._view(positions, mask)
        for layer in self.layers:
            x, _ = layer(x, view, cache)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """States [..., hidden] -> logits [..., rows of the head], without what the token before adds."""
        if self.lm_head is None:
            return self._target[0].logits(states)
        return functional.linear(states * self.config.logit_scale, self.lm_head.weight)

    def bias(self, before: Tensor) -> Tensor:
        """What tokens int [...] add to the logits [..., rows of the head] of those behind them."""
        assert self.markov_head is not None
        return self.markov_head.markov_w2(self.markov_head.markov_w1(before))

    def confidence(self, states: Tensor, before: Tensor) -> Tensor:
        """The logits [...] of the chances that the likeliest tokens of rows with these states [..., hidden],
        behind the tokens int [...], are right.
        """
        assert self.confidence_head is not None
        if self.markov_head is not None:
            states = torch.cat([states, self.markov_head.markov_w1(before)], dim=-1)
        return self.confidence_head.proj(states)

    def _view(self, positions: Tensor, mask: Tensor | None) -> View:
        cos, sin = self.rotary(positions)
        dtype = self.fc.weight.dtype
        seen = torch.empty(0, dtype=torch.bool) if mask is None else mask
        return View(cos.to(dtype), sin.to(dtype), seen, positions)
