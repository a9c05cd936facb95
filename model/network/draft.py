"""Draft networks (EAGLE-2, EAGLE-3, multi-token prediction), as plainly as they can be written.

Submodules carry the names of `edge.config.draft.draft_tensors`, so the state dict is what a draft bundle
stores; `edge.config.draft_names` has those of public checkpoints. Embedding and head are a decoder's, whose
hidden states the network goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig, RopeConfig
from edge.config.draft import DraftConfig
from edge.config.rope_regime import follow_regime
from edge.errors import CheckpointError
from edge.model.network.decoder import Decoder, Layer, RMSNorm, Trunk, View
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.rope import RotaryEmbedding


class Draft(nn.Module):
    """One row per place i of a sequence, from the embedding of token i + 1 and the hidden state of token i;
    its output, a state, stands for the hidden state of token i + 1. `DraftConfig` says what is computed.

    Where the target's hidden states are known, `features` makes of them what `forward` takes; further on
    `forward` takes the states that it gave itself:

        states = draft(tokens, draft.features(hidden_of(trunk, config)), cache=cache)
        logits = draft.logits(states[-1:])  # of the token behind the last row's
        states = draft(guess, states[-1:], cache=cache)

    Gradients go through all of it but the target's embedding and head where those are frozen. In training,
    rows of several such steps may stand in one cache: positions and mask say what each row is and sees.

    decoder: the target, of which nothing becomes a parameter here. Its context is the draft's.
    """

    def __init__(self, config: DraftConfig, decoder: Decoder) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        plain = layer_shape(config)
        shape = replace(plain, rope=follow_regime(plain.rope, decoder.config.rope))
        self.config, self.shape = config, shape
        self._target = (decoder,)  # in a tuple: no submodule
        self.input_norm1, self.input_norm2 = (
            RMSNorm(size, eps) if config.input_norms else nn.Identity() for _ in range(2)
        )
        inputs = config.hidden_columns if config.joins_in_attention else 2 * size
        self.fc = nn.Linear(inputs, size, bias=config.fc_bias)
        self.layers = draft_layers(config, shape)
        if config.joins_in_attention:
            attention = self.layers[0].self_attn
            for name in ("q_proj", "k_proj", "v_proj"):
                rows = getattr(attention, name).out_features
                setattr(attention, name, nn.Linear(2 * size, rows, bias=False))
        if not config.attention_norm:
            self.layers[0].input_layernorm = nn.Identity()
        self.rotary = RotaryEmbedding(shape, decoder.context)
        self.norm = RMSNorm(size, eps) if config.output_norm else nn.Identity()
        self.lm_head = None if config.head_rows is None else nn.Linear(size, config.head_rows, bias=False)

    @classmethod
    def from_tensors(cls, config: DraftConfig, decoder: Decoder, tensors: Mapping[str, Tensor]) -> Draft:
        """A draft over these float tensors; CheckpointError for a missing, surplus or misshapen one."""
        with torch.device("meta"):
            draft = cls(config, decoder)
        draft.rotary = RotaryEmbedding(draft.shape, decoder.context)
        load(draft, tensors)
        return draft

    def features(self, hidden: Tensor) -> Tensor:
        """What `forward` takes for rows whose hidden states the target has computed, [..., n, hidden].

        hidden: [..., n, config.hidden_columns], the target's hidden states, or with taps its residual streams
        after those layers, one behind the other; see `hidden_of`. EAGLE-3 joins them with `fc`; for the other
        kinds they are what they are.
        """
        return self.fc(hidden) if self.config.joins_in_attention else hidden

    def forward(
        self,
        tokens: Tensor,
        hidden: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: GrowingCache | None = None,
    ) -> Tensor:
        """States [..., n, hidden] of n rows, appended to the cache if there is one.

        tokens: int [..., n], the token after each row's. hidden: [..., n, hidden], of each row either
        `features` of what the target has computed (true rows) or the state that told the row's token, as an
        earlier call gave it (guessed rows). positions: int [n], of the rows in the sequence, by default from
        0. mask: bool [n, m] over all rows of the cache, these at the end, by default causal. A row sees no
        further back than `config.window` rows of what the mask shows.
        """
        n, device = tokens.shape[-1], tokens.device
        past = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(past, past + n, device=device)
        if mask is None:
            mask = torch.ones(n, past + n, dtype=torch.bool, device=device).tril(past)
        if self.config.window is not None:
            later = mask.flip(-1).cumsum(-1).flip(-1)  # rows that a query sees from each one on
            mask = mask & (later <= self.config.window)
        embeddings = self._target[0].model.embed(tokens).to(hidden.dtype)
        joined = torch.cat([self.input_norm1(embeddings), self.input_norm2(hidden)], dim=-1)
        x, read = (hidden, joined) if self.config.joins_in_attention else (self.fc(joined), None)
        cos, sin = self.rotary(positions)
        view = View(cos.to(x.dtype), sin.to(x.dtype), mask, positions)
        for layer in self.layers:
            x, _ = layer(x, view, cache, read)
            read = None  # by the first layer alone
        if cache is not None:
            cache.advance(n)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """States [..., hidden] -> logits [..., rows of the head]."""
        normed = self.norm(states)
        if self.lm_head is None:
            return self._target[0].logits(normed)
        return functional.linear(normed * self.config.logit_scale, self.lm_head.weight)


def load(draft: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network on the meta device these tensors, for inference; CheckpointError for a missing, surplus
    or misshapen one.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in draft.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"Tensor '{name}' of a draft has shape {found.get(name)}, but its configuration asks for "
                f"{expected.get(name)}."
            )
    draft.load_state_dict(dict(tensors), assign=True)
    draft.requires_grad_(False).eval()


def hidden_of(trunk: Trunk, config: DraftConfig) -> Tensor:
    """What a draft reads of a pass of its target, [..., n, config.hidden_columns]."""
    if not config.taps:
        return trunk.hidden
    return torch.cat([trunk.stream[layer] for layer in config.taps], dim=-1)


def draft_layers(config: DraftConfig, shape: ModelConfig) -> nn.ModuleList:
    """The decoder layers of a draft; shape: `layer_shape` under its target's regime of rotary positions."""
    layers = [Layer(shape, index) for index in range(config.num_hidden_layers)]
    for layer in layers:
        layer.scale = config.residual_scale
        layer.self_attn.rotates = config.rope is not None
    return nn.ModuleList(layers)


def layer_shape(config: DraftConfig) -> ModelConfig:
    """A Llama with the draft's layers, or with norms of heads a Qwen3."""
    return ModelConfig(
        model_type="qwen3" if config.is_block else "llama",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope=config.rope or RopeConfig(),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
    )
