"""Rotary position embedding in PyTorch: frequencies of every rope type, and the rotation itself.

An implementation of its own, straight from the papers, so that it can judge `edge.config.rope`:
the two share nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.config import ModelConfig, RopeConfig, RopeType


@dataclass(frozen=True)
class _Lengths:
    """Rows of a head that are rotated, the context the model runs with, and the number of positions it was
    published for."""

    head_dim: int
    context: int
    published: int


def _plain(theta: float, head_dim: int) -> Tensor:
    """theta ** (-2i / d), float64 [d / 2] (RoFormer, section 3.2.2)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)


def _default(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    return _plain(rope.theta, lengths.head_dim), 1.0


def _linear(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    """Position interpolation: positions are divided by the factor."""
    return _plain(rope.theta, lengths.head_dim) / rope.factor, 1.0


def _dynamic(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    """NTK-aware: a larger theta once the context passes the trained length, fixed for the whole context."""
    d, trained = lengths.head_dim, rope.original_max_position_embeddings or lengths.published
    length = max(lengths.context, trained)
    growth = rope.factor * length / trained - (rope.factor - 1)
    return _plain(rope.theta * growth ** (d / (d - 2)), d), 1.0


def _yarn(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    """YaRN, section 3: interpolate dimensions slower than beta_slow turns over the trained length, keep those
    faster than beta_fast, blend linearly in between; section 3.4 gives the factor on cos and sin."""
    d, trained = lengths.head_dim, rope.original_max_position_embeddings or lengths.published
    plain = _plain(rope.theta, d)

    def dimension(turns: float) -> float:
        """Index i whose frequency makes this many turns over the trained length."""
        return d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = (torch.arange(d // 2, dtype=torch.float64, device="cpu") - low) / ((high - low) or 0.001)
    slow = ramp.clamp(0, 1)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0

    scale = mscale(1.0)
    if rope.mscale and rope.mscale_all_dim:
        scale = mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    if rope.attention_factor is not None:
        scale = rope.attention_factor
    return plain / rope.factor * slow + plain * (1 - slow), scale


def _longrope(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    """LongRoPE: a factor per dimension, from the long list if the context passes the original length."""
    original = rope.original_max_position_embeddings or lengths.published
    factors = rope.long_factor if lengths.context > original else rope.short_factor
    ratio = lengths.published / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    if rope.attention_factor is not None:
        scale = rope.attention_factor
    divisors = torch.tensor(factors, dtype=torch.float64, device="cpu")
    return _plain(rope.theta, lengths.head_dim) / divisors, scale


def _llama3(rope: RopeConfig, lengths: _Lengths) -> tuple[Tensor, float]:
    """Llama 3.1: wavelengths over original / low factor are stretched, those under original / high factor are
    kept, in between the two are mixed by original / wavelength."""
    plain = _plain(rope.theta, lengths.head_dim)
    trained = rope.original_max_position_embeddings or lengths.published
    wavelengths = 2 * math.pi / plain
    smooth = (trained / wavelengths - rope.beta_slow) / (rope.beta_fast - rope.beta_slow)
    mixed = (1 - smooth) * plain / rope.factor + smooth * plain
    long, short = wavelengths > trained / rope.beta_slow, wavelengths < trained / rope.beta_fast
    return torch.where(long, plain / rope.factor, torch.where(short, plain, mixed)), 1.0


_RULES: dict[RopeType, Callable[[RopeConfig, _Lengths], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def rope_frequencies(config: ModelConfig, context: int) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [head_dim / 2], factor on cos and sin) for a context in tokens.

    The frequency of pairs that are not rotated is 0; the factor is not for them.
    """
    lengths = _Lengths(config.rope.rotary_dim or config.head_dim, context, config.max_position_embeddings)
    inverse, scale = _RULES[config.rope.type](config.rope, lengths)
    return functional.pad(inverse.float(), (0, config.head_dim // 2 - inverse.numel())), scale


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the angles position * frequency."""

    inverse_frequency: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        inverse, scale = rope_frequencies(config, context)
        self.register_buffer("inverse_frequency", inverse, persistent=False)
        self.register_buffer("scale", torch.where(inverse == 0, 1.0, scale), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int [..., n] -> cos, sin float32 [..., 1, n, head_dim / 2]; the 1 is for the heads."""
        # In float32, as the models were trained: at position 100,000 rounding is worth up to 0.004 radians.
        angles = positions.float().unsqueeze(-1) * self.inverse_frequency
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return cos.unsqueeze(-3), sin.unsqueeze(-3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + d / 2]) of x [..., heads, n, d] by their angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
