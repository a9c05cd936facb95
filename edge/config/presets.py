"""Shapes of known networks by name, for random weights: what a person profiles before having weights.

Sources: the public `config.json` of each model; of the models since MiniCPM4.1 (MiniCPM4.1-8B, MiniCPM5-1B
and -2B, Qwen3, Qwen2.5-Instruct, SmolLM3-3B, Phi-4-mini-instruct, Llama-3.2, Mistral-7B v0.1 and v0.3) as
other programs' tests and converters quote it, without the files at hand. Of MiniCPM4.1-8B only what differs
from MiniCPM4-8B was found: the context, which is LongRoPE's original length too. The sizes of MiniCPM5-1B
give exactly the published number of parameters.

The rotary factors of LongRoPE are left at 1, since random weights give no text either way. Presets of
MiniCPM4 and older have a context of 131072 tokens so that long ones can be measured; others have their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge.config import ModelConfig, RopeConfig
from edge.config.families import every_last
from edge.errors import ConfigError
from edge.system.registry import Registry

CONTEXT = 131072
"""Longest context in tokens of presets of MiniCPM4 and older, whatever the original was trained for."""


PRESETS: Registry[ModelConfig] = Registry("preset")
"""Shapes for `random:NAME`; a plugin adds those of its families."""


def preset(name: str) -> ModelConfig:
    """The config of a preset; ConfigError lists the names when it is unknown."""
    found = PRESETS.find(name)
    if found is None:
        raise ConfigError(f"Unknown preset '{name}'; choose one of {', '.join(PRESETS)}.")
    return found


def _minicpm(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    tied: bool,
    eps: float,
    eos: tuple[int, ...],
    long: bool,
) -> ModelConfig:
    head_dim = hidden_size // heads
    ones = (1.0,) * (head_dim // 2)
    rope = RopeConfig("longrope", 10000.0, 1.0, CONTEXT, ones, ones) if long else RopeConfig()
    return ModelConfig(
        model_type="minicpm",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=eps,
        max_position_embeddings=CONTEXT,
        rope=rope,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_ids=eos,
        scale_emb=12.0,
        scale_depth=1.4,
        dim_model_base=256.0,
    )


def _shape(
    model_type: str,
    vocab_size: int,
    sizes: tuple[int, int, int],
    heads: tuple[int, int],
    context: int,
    rope: RopeConfig,
    ends: tuple[int, ...],
    *,
    bos: int | None = None,
    tied: bool = False,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """sizes: hidden, of the MLP, number of layers. heads: of queries, of keys. ends: end tokens."""
    hidden, inner, layers = sizes
    values: dict[str, Any] = {"head_dim": hidden // heads[0], **others}
    return ModelConfig(
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        rms_norm_eps=eps,
        max_position_embeddings=context,
        rope=rope,
        tie_word_embeddings=tied,
        bos_token_id=bos,
        eos_token_ids=ends,
        **values,
    )


def _minicpm5(hidden: int, inner: int, layers: int) -> ModelConfig:
    rope, ends = RopeConfig(theta=5e6), (1, 130073)
    sizes = (hidden, inner, layers)
    return _shape("llama", 130560, sizes, (16, 2), 131072, rope, ends, bos=0, head_dim=128, pad_token_id=1)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool = True) -> ModelConfig:
    rope, ends = RopeConfig(theta=1e6), (151645, 151643)
    sizes = (hidden, inner, layers)
    return _shape("qwen3", 151936, sizes, (heads, 8), 40960, rope, ends, tied=tied, head_dim=128)


def _qwen2(
    hidden: int, inner: int, layers: int, heads: tuple[int, int], vocab_size: int = 151936
) -> ModelConfig:
    rope, ends = RopeConfig(theta=1e6), (151645, 151643)
    tied = vocab_size == 151936  # the large ones have a larger table, and a head of their own
    return _shape("qwen2", vocab_size, (hidden, inner, layers), heads, 32768, rope, ends, tied=tied)


def _llama32(hidden: int, layers: int, heads: int, head_dim: int) -> ModelConfig:
    rope = RopeConfig("llama3", 500000.0, 32.0, 8192, beta_fast=4.0, beta_slow=1.0)
    ends, sizes = (128001, 128008, 128009), (hidden, 8192, layers)
    return _shape(
        *("llama", 128256, sizes, (heads, 8), 131072, rope, ends),
        bos=128000,
        tied=True,
        eps=1e-5,
        head_dim=head_dim,
    )


def _mistral(vocab_size: int, theta: float, **others: Any) -> ModelConfig:
    rope, sizes = RopeConfig(theta=theta), (4096, 14336, 32)
    return _shape("mistral", vocab_size, sizes, (32, 8), 32768, rope, (2,), bos=1, eps=1e-5, **others)


_ONES = (1.0,) * 48  # Phi-4-mini rotates 96 of a head's 128 rows
_MINICPM_2B = _minicpm(
    vocab_size=122753,
    hidden_size=2304,
    intermediate_size=5760,
    layers=40,
    heads=36,
    kv_heads=36,
    tied=True,
    eps=1e-5,
    eos=(2,),
    long=False,
)
_MINICPM4_8B = _minicpm(
    vocab_size=73448,
    hidden_size=4096,
    intermediate_size=16384,
    layers=32,
    heads=32,
    kv_heads=2,
    tied=False,
    eps=1e-6,
    eos=(2, 73440),
    long=True,
)
_BUILT_IN: dict[str, ModelConfig] = {
    "minicpm4-0.5b": _minicpm(
        vocab_size=73448,
        hidden_size=1024,
        intermediate_size=4096,
        layers=24,
        heads=16,
        kv_heads=2,
        tied=True,
        eps=1e-6,
        eos=(2, 73440),
        long=True,
    ),
    "minicpm4-8b": _MINICPM4_8B,
    "minicpm4.1-8b": replace(
        _MINICPM4_8B,
        max_position_embeddings=65536,
        rope=replace(_MINICPM4_8B.rope, original_max_position_embeddings=65536),
    ),
    "minicpm-1.2b": _minicpm(
        vocab_size=73440,
        hidden_size=1536,
        intermediate_size=3840,
        layers=52,
        heads=24,
        kv_heads=8,
        tied=True,
        eps=1e-5,
        eos=(2,),
        long=False,
    ),
    "minicpm-2.4b": _MINICPM_2B,
    "minicpm-moe-8x2b": replace(_MINICPM_2B, num_experts=8, num_experts_per_tok=2),
    "smollm2-135m": ModelConfig(
        model_type="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_position_embeddings=CONTEXT,
        rope=RopeConfig(theta=100000.0),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "minicpm5-1b": _minicpm5(1536, 4608, 24),
    "minicpm5-2b": _minicpm5(2048, 6144, 42),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, (14, 2)),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, (12, 2)),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, (16, 2)),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, (28, 4), 152064),
    "smollm3-3b": _shape(
        *("smollm3", 128256, (2048, 11008, 36), (16, 4), 65536, RopeConfig(theta=5e6), (128012,)),
        bos=128000,
        tied=True,
        layers_without_rope=every_last(4, 36),
    ),
    "phi-4-mini": _shape(
        *("phi3", 200064, (3072, 8192, 32), (24, 8), 131072),
        RopeConfig("longrope", 10000.0, 1.0, 4096, _ONES, _ONES, rotary_dim=96),
        (199999, 200020),
        bos=199999,
        tied=True,
        eps=1e-5,
        sliding_window=262144,  # longer than the context
        sliding_layers=tuple(range(32)),
    ),
    "llama-3.2-1b": _llama32(2048, 16, 32, 64),
    "llama-3.2-3b": _llama32(3072, 28, 24, 128),
    "mistral-7b": _mistral(32768, 1e6),
    "mistral-7b-v0.1": _mistral(32000, 1e4, sliding_window=4096, sliding_layers=tuple(range(32))),
}
for _name, _config in _BUILT_IN.items():
    PRESETS.register(_name, _config)
