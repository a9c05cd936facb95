"""The network, as plainly as it can be written: the specification that everything else is tested against.

One file, float32, no cache and no fusion. Submodules carry the names of Hugging Face's Llama, so the state
dict is the checkpoint. muP scales: MiniCPM, section 3 (arXiv 2404.06395).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig
from edge.errors import CheckpointError, ConfigError
from model.rope import RotaryEmbedding, rotate


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention: query head h reads key-value head h // (heads / kv_heads)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        queries, keys = self.heads * config.head_dim, self.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [..., n, hidden]; mask bool [n, n], row i sees column j."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(-2, -3)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(-2, -3)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=-3), v.repeat_interleave(group, dim=-3)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return self.o_proj((weights @ v).transpose(-2, -3).flatten(-2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Two pre-norm sub-layers, each scaled (muP, place 2) before it joins the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.scale = config.residual_scale

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [..., n, hidden] -> the residual stream after this layer."""
        x = x + self.scale * self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.scale * self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config, context)
        self.embedding_scale = config.embedding_scale

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(normed hidden states [..., n, hidden], the residual stream after each layer)."""
        cos, sin = self.rotary(positions)
        x = self.embed_tokens(tokens) * self.embedding_scale  # muP, place 1
        stream = []
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
            stream.append(x)
        return self.norm(x), stream


class Decoder(nn.Module):
    """A MiniCPM4 or Llama-shaped language model.

    context: the length in tokens that it runs with; some rope types choose their frequencies by it.
    Attention is dense: `config.sparse` changes how much of the cache a long sequence reads, not the weights.
    """

    def __init__(self, config: ModelConfig, context: int | None = None) -> None:
        super().__init__()
        if config.num_experts:
            raise ConfigError(f"num_experts is {config.num_experts}: mixtures of experts are not supported.")
        self.config = config
        self.model = Backbone(config, context or config.max_position_embeddings)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @classmethod
    def from_tensors(
        cls, config: ModelConfig, tensors: Mapping[str, Tensor], context: int | None = None
    ) -> Decoder:
        """A decoder over these float tensors, named as in Hugging Face's Llama; it borrows their memory.

        Raises CheckpointError for a missing, surplus or misshapen tensor.
        """
        with torch.device("meta"):
            decoder = cls(config, context)
        expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
        for name in sorted(expected.keys() | tensors.keys()):
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != expected.get(name):
                raise CheckpointError(
                    f"Tensor '{name}' has shape {found}, but the configuration asks for {expected.get(name)}."
                )
        decoder.load_state_dict(dict(tensors), assign=True)
        return decoder.requires_grad_(False).eval()

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(hidden [..., n, hidden] after the final norm and before the logit scale, a tap per wanted layer).

        tokens: int [..., n]. positions: int [..., n], by default 0 .. n - 1. mask: bool [n, n], row i sees
        column j, by default causal; both together describe a token tree. A tap is the residual stream
        [..., n, hidden] after its layer.
        """
        n = tokens.shape[-1]
        if positions is None:
            positions = torch.arange(n, device=tokens.device)
        if mask is None:
            mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        hidden, stream = self.model(tokens, positions, mask)
        return hidden, tuple(stream[layer] for layer in taps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [..., n, hidden] -> logits [..., n, vocab]."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return functional.linear(hidden * self.config.logit_scale, weight)  # muP, place 3, tied or not

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits [..., n, vocab] of tokens [..., n]; see `hidden_states` for positions and mask."""
        return self.logits(self.hidden_states(tokens, positions, mask)[0])
