"""Which of LongRoPE's two lists of factors a run uses.

Upstream's code changes lists when a sequence grows beyond the original length, and what stands in its KV
cache was rotated by the other list. Here a run has one list, so that no cache ever holds keys of both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edge.config import ModelConfig, RopeConfig
from edge.errors import ConfigError

RopeRegime = Literal["auto", "short", "long"]
"""Values of `--rope-regime`.

short, long: that list, whatever the context. auto: what an exported bundle was made with, otherwise long if
the context goes beyond the original length.
"""


def with_regime(config: ModelConfig, regime: RopeRegime) -> ModelConfig:
    """The config with a regime; ConfigError for a network whose rotary embedding has only one."""
    if regime == "auto":
        return config
    if config.rope.type != "longrope":
        raise ConfigError(
            f"This model has no {regime} regime (--rope-regime), which belongs to rope_type longrope: its "
            f"rope_type is {config.rope.type}; leave it out."
        )
    return replace(config, rope=replace(config.rope, regime=regime))


def without_regime(config: ModelConfig) -> ModelConfig:
    """The network that is left if the choice of a list is not counted."""
    return replace(config, rope=replace(config.rope, regime=None))


def follow_regime(rope: RopeConfig, target: RopeConfig) -> RopeConfig:
    """The rotary embedding of a draft in the regime of its target."""
    return replace(rope, regime=target.regime) if rope.type == "longrope" else rope
