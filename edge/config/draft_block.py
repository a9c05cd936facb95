"""What the `config.json` of a public block draft, DSpark or DFlash, says beyond that of an EAGLE-2 one.

Read in DeepSeek's DeepSpec (modeling/dspark), z-lab's dflash and SGLang (dspark_config.py, dflash_utils.py).
Fields stand in the config itself, or in its `dspark_config` or `dflash_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.config.draft import WINDOW
from edge.config.fields import Fields, shown
from edge.config.network import ModelConfig
from edge.errors import ConfigError

INNER = ("dspark_config", "dflash_config")
MARKS = ("target_layer_ids", "mask_token_id", "markov_rank", "block_size", *INNER)
"""Fields that no other draft has."""
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "markov_head_type": ("vanilla",),
    "attention_value_scale": (1.0,),
    "causal": (False,),
}
_ROWS = 16  # of a block of DFlash whose config does not say it


def block_fields(
    data: Mapping[str, Any], has_confidence: bool, target: ModelConfig, where: str
) -> dict[str, Any]:
    """The fields of `DraftConfig` that only a block draft of `target` has; where: the file, in words.
    has_confidence: whether there are tensors of a confidence head.

    A draft of DSpark tells a token by the anchor's row, one of DFlash does not; `sample_from_anchor` may say
    otherwise. With fewer tokens than its target it has a head of its own. Layers are numbered by those that a
    hidden state comes from. Raises ConfigError for variants that are not computed, by their field.
    """
    inner: dict[str, Any] = {}
    for name in INNER:
        entry = data.get(name)
        if entry is not None and not isinstance(entry, Mapping):
            raise ConfigError(f"The field '{name}' of {where} must be an object, not {shown(entry)}.")
        inner |= entry or {}
    said = {**inner, **{name: value for name, value in data.items() if value is not None}}
    for name, values in _FIXED.items():
        if said.get(name) is not None and said[name] not in values:
            raise _variant(name, said[name], where)
    source = Fields(said, where)
    layers = source.integer("num_target_layers", target.num_hidden_layers)
    if layers != target.num_hidden_layers:
        raise ConfigError(
            f"{where} is a draft for a model whose num_hidden_layers is {layers}, not "
            f"{target.num_hidden_layers} as here; take the draft that was trained for this model."
        )
    rows = source.integer("draft_vocab_size", target.vocab_size)
    own_head = rows != target.vocab_size
    rank = source.integer("markov_rank", 0)
    confidence = source.boolean("enable_confidence_head", has_confidence)
    if confidence and rank and not source.boolean("confidence_head_with_markov", True):
        raise _variant("confidence_head_with_markov", False, where)
    flash = _is_flash(said)
    anchor_tells = source.boolean("sample_from_anchor", not flash)
    if not anchor_tells and not flash:
        raise _variant("sample_from_anchor", False, where)
    windows = [said[name] for name in ("sliding_window",) if _slides(said) and said.get(name) is not None]
    return {
        "kind": "dspark",
        "taps": _taps(said.get("target_layer_ids"), layers, where),
        "block_size": source.integer("block_size", _ROWS if flash else None),
        "mask_token": source.integer("mask_token_id"),
        "anchor_tells": anchor_tells,
        "markov_rank": rank,
        "confidence": confidence,
        "residual_scale": 1.0,
        "own_head": own_head,
        "head_rows": rows if own_head else None,
        "logit_scale": 1.0 if own_head else target.logit_scale,
        "output_norm": True,
        "window": min([WINDOW, *windows]),
    }


def _variant(name: str, value: Any, where: str) -> ConfigError:
    return ConfigError(
        f"{where} is a variant of a block draft that can't be run (field '{name}': {shown(value)})."
    )


def _is_flash(said: Mapping[str, Any]) -> bool:
    """Whether a config is one of DFlash, not of DSpark."""
    names = said.get("architectures")
    text = " ".join(map(str, names)).lower() if isinstance(names, list) else ""
    return "dflash" in text or ("dspark" not in text and not said.get("markov_rank"))


def _slides(said: Mapping[str, Any]) -> bool:
    types = said.get("layer_types")
    return isinstance(types, list) and "sliding_attention" in types


def _taps(listed: Any, layers: int, where: str) -> tuple[int, ...]:
    sound = isinstance(listed, list) and all(type(each) is int for each in listed)
    taps = sorted({*listed}) if sound else []
    if not taps or taps != listed or not 0 <= taps[0] <= taps[-1] < layers:
        raise ConfigError(
            f"The field 'target_layer_ids' of {where} is {shown(listed)}: no ascending list of layers of a "
            f"model with {layers}, whose outputs a draft could read."
        )
    return tuple(taps)
