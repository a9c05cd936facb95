"""Shapes of known networks by name, for random weights: what a person profiles before having weights.

Sources: the public `config.json` of each model. The rotary factors of LongRoPE are left at 1, since random
weights give no text either way, and the context reaches 131072 tokens so that long ones can be measured.
"""

from __future__ import annotations

from dataclasses import replace

from edge.config import ModelConfig, RopeConfig
from edge.errors import ConfigError
from edge.system.registry import Registry

CONTEXT = 131072
"""Longest context of a preset in tokens, whatever the original was trained for."""


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
    "minicpm4-8b": _minicpm(
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
}
for _name, _config in _BUILT_IN.items():
    PRESETS.register(_name, _config)
