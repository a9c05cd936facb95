"""Which layers of a network see only a sliding window of the sequence, as `config.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge.config import ModelConfig
from edge.config.families import Family
from edge.config.fields import Fields, listed
from edge.errors import ConfigError

KINDS = ("full_attention", "sliding_attention")
"""What `layer_types` may call a layer."""


def sliding_layers_from_hf(
    source: Fields, family: Family, layers: int, without_rope: Sequence[int]
) -> tuple[int | None, tuple[int, ...]]:
    """The window in tokens and the numbers of the layers that have it; None and () if there are none."""
    if family.windows is None:
        return None, ()
    window = None if source.is_null("sliding_window") else source.optional_integer("sliding_window")
    if family.windows == "all":
        found: tuple[int, ...] = tuple(range(layers))
    elif source.boolean("use_sliding_window", False):
        found = _layers(source, family, layers, without_rope)
    else:
        window, found = None, ()
        if "sliding_attention" in source.texts("layer_types"):
            raise ConfigError(
                "config.json contradicts itself: 'layer_types' names layers with sliding attention, but "
                "'use_sliding_window' is not true; correct the wrong one."
            )
    return (window, found) if window is not None and found else (None, ())


def sliding_layers_to_hf(config: ModelConfig, family: Family) -> Mapping[str, Any]:
    """The fields that say the same; null is written out, since an absent window may be one of 4096 tokens."""
    if family.windows is None:
        return {}
    if family.windows == "all":
        return {"sliding_window": config.sliding_window}
    kinds = [KINDS[layer in config.sliding_layers] for layer in range(config.num_hidden_layers)]
    return {
        "use_sliding_window": bool(config.sliding_layers),
        "sliding_window": config.sliding_window,
        "layer_types": kinds,
    }


def _layers(source: Fields, family: Family, layers: int, without_rope: Sequence[int]) -> tuple[int, ...]:
    """`layer_types` if it is there, else the family's rule."""
    kinds = source.texts("layer_types")
    if not kinds:
        upper = range(max(source.integer("max_window_layers", 0), 0), layers)
        return tuple(without_rope if family.windows == "without rope" else upper)
    if len(kinds) != layers or not set(kinds) <= set(KINDS):
        raise ConfigError(f"'layer_types' of config.json must name one of {listed(KINDS)} for every layer.")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == KINDS[1])
