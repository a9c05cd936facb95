"""The network, as plainly as it can be written: the specification that everything else is tested against.

Submodules carry the names of Hugging Face's Llama, so the state dict is the checkpoint. KV caches are in
`edge.model.network.kv_cache`, mixtures of experts in `edge.model.network.moe`, rotary frequencies in
`edge.model.network.rope`. muP scales: MiniCPM, section 3 (arXiv 2404.06395).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edge.config import ModelConfig
from edge.config.tensors import layer_tensors
from edge.errors import CheckpointError
from edge.model.network.kv_cache import KVCache
from edge.model.network.moe import MixtureOfExperts
from edge.model.network.rope import RotaryEmbedding, rotate
from edge.model.network.soft_prompt import SoftRows

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`attend(q, k, v, mask, positions)`: what stands between the projections.

q [..., heads, n, d] and k, v [..., kv_heads, m, d], rotated; the n tokens are among the m rows of the cache.
mask bool [n, m]: row i may see column j. positions int [..., n] of the queries. Returns [..., heads, n, d].
"""


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Softmax attention over every row that the mask shows; query head h reads KV head h // (heads / kv)."""
    group = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(group, dim=-3), v.repeat_interleave(group, dim=-3)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """The same through PyTorch's fused kernel, which never holds the whole [n, m] matrix: for training."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the division in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def linear(inputs: int, outputs: int, name: str, declared: Collection[str]) -> nn.Linear:
    """A matrix of a layer, with a bias if the family declares one for it."""
    return nn.Linear(inputs, outputs, bias=f"{name}.bias" in declared)


class Attention(nn.Module):
    """Grouped-query attention; `attend` decides which rows of the cache a query reads.

    What a family may add to Llama's: biases, an RMSNorm of every head of q and k before they are rotated
    (Qwen3), and layers that do not rotate them (SmolLM3).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.layer = config.num_attention_heads, config.num_key_value_heads, layer
        queries, keys = self.heads * config.head_dim, self.kv_heads * config.head_dim
        declared = layer_tensors(config)
        self.q_proj = linear(config.hidden_size, queries, "self_attn.q_proj", declared)
        self.k_proj = linear(config.hidden_size, keys, "self_attn.k_proj", declared)
        self.v_proj = linear(config.hidden_size, keys, "self_attn.v_proj", declared)
        self.o_proj = linear(queries, config.hidden_size, "self_attn.o_proj", declared)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.rms_norm_eps) if f"self_attn.{name}.weight" in declared else None
            for name in ("q_norm", "k_norm")
        )
        self.rotates = layer not in config.layers_without_rope
        self.attend: Attend = dense_attention

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        """x [..., n, hidden] -> the same shape; the cache, if there is one, gets the rows of these tokens."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        q = q if self.q_norm is None else self.q_norm(q)
        q = rotate(q, view.cos, view.sin) if self.rotates else q
        k, v = self.keys_and_values(x, view, cache)
        mask = view.mask
        if view.soft is not None:
            k, v, mask = view.soft.before(self.layer, k, v, mask)
        seen = self.attend(q, k, v, mask, view.positions)
        return self.o_proj(seen.transpose(-2, -3).flatten(-2))

    def keys_and_values(self, x: Tensor, view: View, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Of these tokens, and with a cache, which gets them, of all its rows."""
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(-2, -3)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(-2, -3)
        k = k if self.k_norm is None else self.k_norm(k)
        k = rotate(k, view.cos, view.sin) if self.rotates else k
        return (k, v) if cache is None else cache.update(self.layer, k, v)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, declared = config.hidden_size, config.intermediate_size, layer_tensors(config)
        self.gate_proj = linear(hidden, inner, "mlp.gate_proj", declared)
        self.up_proj = linear(hidden, inner, "mlp.up_proj", declared)
        self.down_proj = linear(inner, hidden, "mlp.down_proj", declared)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class View(NamedTuple):
    """Where the tokens of a pass stand and what they see; the same for every layer.

    cos, sin [..., 1, n, head_dim / 2]. mask bool [n, m] over the cache's rows. positions int [..., n]. soft:
    the last rows, if they are soft ones.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    positions: Tensor
    soft: SoftRows | None = None


class Layer(nn.Module):
    """Two pre-norm sub-layers, each scaled (muP, place 2) before it joins the residual stream.

    layer: its number, which is its place in the cache.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MixtureOfExperts(config) if config.num_experts else MLP(config)
        self.scale = config.residual_scale

    def forward(
        self, x: Tensor, view: View, cache: KVCache | None = None, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [..., n, hidden] -> (the residual stream after this layer, router logits if it has experts).

        read: what attention reads instead of the normed stream.
        """
        read = self.input_layernorm(x) if read is None else read
        x = x + self.scale * self.self_attn(read, view, cache)
        normed, router = self.post_attention_layernorm(x), None
        if isinstance(self.mlp, MixtureOfExperts):
            mixed, router = self.mlp(normed)
        else:
            mixed = self.mlp(normed)
        return x + self.scale * mixed, router


class Trunk(NamedTuple):
    """Everything that a pass computes before the head.

    hidden [..., n, hidden]: after the final norm, before the logit scale. stream: the residual stream after
    each layer. router_logits: [..., n, num_experts] of every layer with experts, for
    `edge.model.network.moe.load_balance_loss`.
    """

    hidden: Tensor
    stream: list[Tensor]
    router_logits: list[Tensor]


class Backbone(nn.Module):
    """Embedding, layers and final norm. gradient_checkpointing: layers are run again in the backward pass."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config, context)
        self.embedding_scale = config.embedding_scale
        self.gradient_checkpointing = False

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [..., n] -> the residual stream before the first layer (muP, place 1)."""
        return self.embed_tokens(tokens) * self.embedding_scale

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None,
        soft: SoftRows | None = None,
    ) -> Trunk:
        """One pass over tokens [..., n], and s soft rows, with mask bool [n + s, m]."""
        x = self.embed(tokens)
        if soft is not None:
            x = torch.cat([x, soft.embeddings.to(x.dtype) * self.embedding_scale], dim=-2)
        cos, sin = self.rotary(positions)
        view = View(cos.to(x.dtype), sin.to(x.dtype), mask, positions, soft)
        stream, router_logits = [], []
        for layer in self.layers:
            if self.gradient_checkpointing and cache is None and torch.is_grad_enabled():
                x, router = checkpoint(layer, x, view, use_reentrant=False)
            else:
                x, router = layer(x, view, cache)
            stream.append(x)
            if router is not None:
                router_logits.append(router)
        return Trunk(self.norm(x), stream, router_logits)


class Decoder(nn.Module):
    """A language model as its family declares it: MiniCPM4, MiniCPM-MoE, Llama and what is like them.

    context: the length in tokens that it runs with; some rope types choose their frequencies by it.
    Attention is dense until `use_attention` says otherwise: `config.sparse` changes how much of the cache a
    long sequence reads, not the weights.
    """

    def __init__(self, config: ModelConfig, context: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.context = context or config.longest_context
        self.model = Backbone(config, self.context)
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

    def use_attention(self, attend: Attend) -> Decoder:
        """Let every layer read its cache through `attend` from now on; returns the decoder itself."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend
        return self

    def trunk(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        soft: SoftRows | None = None,
    ) -> Trunk:
        """One pass: appends tokens int [..., n] to the cache, if there is one, and runs all layers.

        positions: int [..., n], by default they continue the cache. mask: bool [n, n], row i sees column j of
        these tokens, by default causal; both together describe a token tree. All tokens see the whole cache
        before this pass. soft: rows behind the tokens, counted in n then, in the cache too.
        """
        n = tokens.shape[-1] + (0 if soft is None else soft.embeddings.shape[-2])
        past = 0 if cache is None else cache.length
        if isinstance(past, int):
            self.config.check_window(past + n)
        rows = past + torch.arange(n, device=tokens.device)
        if mask is None:
            mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        if cache is not None:
            columns = torch.arange(cache.columns(n), device=tokens.device)
            among = torch.zeros(n, cache.columns(n), dtype=torch.bool, device=tokens.device)
            mask = (columns < past) | among.index_copy(1, rows, mask)
        trunk = self.model(tokens, rows if positions is None else positions, mask, cache, soft)
        if cache is not None:
            cache.advance(n)
        return trunk

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(hidden [..., n, hidden] after the final norm and before the logit scale, outputs of `layers`).

        See `trunk` for the others. A layer's output is the residual stream [..., n, hidden] after it.
        """
        trunk = self.trunk(tokens, positions, mask)
        return trunk.hidden, tuple(trunk.stream[layer] for layer in layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [..., n, hidden] -> logits [..., n, vocab]."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return functional.linear(hidden * self.config.logit_scale, weight)  # muP, place 3, tied or not

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits [..., n, vocab] of tokens [..., n]; see `trunk`."""
        return self.logits(self.trunk(tokens, positions, mask, cache).hidden)
