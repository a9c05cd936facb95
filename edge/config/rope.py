"""Rotary embedding: from a `RopeConfig` to the frequencies and the factor that the decoder uses.

Every type follows the formulas of transformers' `modeling_rope_utils.py`, in float32 where it uses float32.
What depends on the length (LongRoPE's factor list, the base of dynamic NTK) is chosen once from the context
that the cache is made for: a live cache never sees two sets of frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import RopeConfig

Frequencies = npt.NDArray[np.float32]


def rope_parameters(
    rope: RopeConfig, head_dim: int, context: int, max_position_embeddings: int
) -> tuple[Frequencies, float]:
    """Inverse frequencies, float32 [head_dim / 2], and the factor on cos and sin.

    context: the longest sequence in tokens that the cache will hold. max_position_embeddings: the config's.
    The angle of pair i at position p is p * frequencies[i]. Pairs that are not rotated (`rotary_dim`) have
    frequency 0, and the factor is not for them; see `rope_tables`.
    """
    rotated = rope.rotary_dim or head_dim
    frequencies, scale = _rotated_pairs(rope, rotated, context, max_position_embeddings)
    still = np.zeros((head_dim - rotated) // 2, np.float32)
    return np.concatenate([frequencies, still]), scale


def rope_tables(
    positions: npt.NDArray[Any], frequencies: Frequencies, scale: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """cos and sin of the angles [n, head_dim / 2], times the factor; 1 and 0 where the frequency is 0.

    positions: [n], of the type of floats to compute in. frequencies, scale: of `rope_parameters`.
    """
    angles = positions[:, None] * frequencies.astype(positions.dtype)
    factors = np.where(frequencies == 0, 1.0, scale).astype(positions.dtype)
    return np.cos(angles) * factors, np.sin(angles) * factors


def rotary_order(head_dim: int, rotary_dim: int) -> npt.NDArray[np.intp]:
    """Row of a head in Hugging Face's files for every row here, where the first rotary_dim ones are rotated.

    There pair i is (i, i + rotary_dim / 2), as in GPT-NeoX, and the others follow behind; here every pair
    i is (i, i + head_dim / 2), and those that are not rotated are the last ones of both halves.
    """
    turned, still = np.arange(rotary_dim).reshape(2, -1), np.arange(rotary_dim, head_dim).reshape(2, -1)
    return np.concatenate([turned, still], axis=1).reshape(-1)


def _rotated_pairs(
    rope: RopeConfig, head_dim: int, context: int, max_position_embeddings: int
) -> tuple[Frequencies, float]:
    """The same for the pairs that are rotated; head_dim: twice their number, as in the functions below."""
    if rope.type == "linear":
        return _frequencies(rope.theta, head_dim) / np.float32(rope.factor), 1.0
    if rope.type == "dynamic":
        return _frequencies(_ntk_base(rope, head_dim, context, max_position_embeddings), head_dim), 1.0
    if rope.type == "yarn":
        return _yarn(rope, head_dim), _yarn_scale(rope)
    if rope.type == "llama3":
        return _llama3(rope, head_dim), 1.0
    if rope.type == "longrope":
        original = rope.original_max_position_embeddings or max_position_embeddings
        factors = rope.long_factor if context > original else rope.short_factor
        scale = rope.attention_factor
        if scale is None:
            scale = longrope_scale(original, max_position_embeddings)
        return np.float32(1) / (np.asarray(factors, np.float32) * _powers(rope.theta, head_dim)), scale
    return _frequencies(rope.theta, head_dim), 1.0


def longrope_scale(original: int, stretched: float) -> float:
    """LongRoPE's factor on cos and sin for a network stretched from `original` tokens (LongRoPE, 3.2)."""
    ratio = stretched / original
    return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))


def _powers(theta: float, head_dim: int) -> Frequencies:
    """theta^(2i / head_dim), rounded to float32 as there."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _frequencies(theta: float, head_dim: int) -> Frequencies:
    return np.float32(1) / _powers(theta, head_dim)


def _ntk_base(rope: RopeConfig, head_dim: int, context: int, max_position_embeddings: int) -> float:
    """Dynamic NTK's base for `context` tokens; within the trained length it is theta itself."""
    trained = rope.original_max_position_embeddings or max_position_embeddings
    stretch = rope.factor * max(context, trained) / trained - (rope.factor - 1)
    return float(rope.theta * stretch ** (head_dim / (head_dim - 2)))


def _yarn(rope: RopeConfig, head_dim: int) -> Frequencies:
    """YaRN (arXiv 2309.00071, 3.2): slow pairs are interpolated, fast ones kept, a ramp lies between."""
    original = rope.original_max_position_embeddings
    assert original is not None  # RopeConfig checked it

    def pair_of(rotations: float) -> float:
        """The (fractional) pair that turns so many times over the original length."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1) - np.clip(ramp, 0, 1)
    powers = _powers(rope.theta, head_dim)
    one = np.float32(1)
    return one / (np.float32(rope.factor) * powers) * (one - kept) + one / powers * kept


def _llama3(rope: RopeConfig, head_dim: int) -> Frequencies:
    """Llama 3.1: as YaRN, but the ramp is linear in the turns that a pair makes over the original length."""
    frequencies = _frequencies(rope.theta, head_dim)
    turns = np.float32(rope.original_max_position_embeddings) * frequencies / np.float32(2 * math.pi)
    kept = np.clip((turns - rope.beta_slow) / (rope.beta_fast - rope.beta_slow), 0, 1).astype(np.float32)
    return (np.float32(1) - kept) * frequencies / np.float32(rope.factor) + kept * frequencies


def _yarn_scale(rope: RopeConfig) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)
