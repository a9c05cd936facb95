"""What the `config.json` of a public EAGLE-3 draft says beyond that of an EAGLE-2 one.

Read in SafeAILab's EAGLE (cnets.py), CPM.cu (speculative/eagle.py), vLLM (llama_eagle3.py, and where it takes
the hidden states) and SGLang (llama_eagle3.py). None of them applies a MiniCPM's scales to such a draft: what
it reads is normed first, and its head is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.config.draft import usual_taps
from edge.config.fields import Fields, shown
from edge.config.network import ModelConfig
from edge.errors import ConfigError

MARKS = ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "eagle_config")
"""Fields that no other draft has."""
_IDS = "eagle_aux_hidden_state_layer_ids"
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "norm_before_residual": (False,),
    "norm_before_fc": (False,),
    "fc_norm": (False,),
    "norm_output": (False,),
    "tie_word_embeddings": (False,),
    "parallel_drafting": (False,),
}
_FIXED_INSIDE: Mapping[str, tuple[Any, ...]] = {
    "use_aux_hidden_state": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_last_layernorm": (True,),
    "use_mtp_layernorm": (False,),
    "parallel_draft_step": (1,),
}
"""Of `eagle_config`; the others there repeat the fields outside."""


def eagle3_fields(data: Mapping[str, Any], target: ModelConfig, where: str) -> dict[str, Any]:
    """The fields of `DraftConfig` that only an EAGLE-3 draft of `target` has; where: the file, in words.

    Layers are listed in two ways: in the config itself as vLLM numbers them, by the layer that a hidden state
    goes into; in `eagle_config` as SGLang and SpecForge do, by the layer that it comes from. Whichever way,
    they are read in ascending order. Raises ConfigError for variants that are not computed, by their field.
    """
    inner = data.get("eagle_config")
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"The field 'eagle_config' of {where} must be an object, not {shown(inner)}.")
    inner = inner or {}
    for fields, fixed, place in ((data, _FIXED, ""), (inner, _FIXED_INSIDE, "eagle_config.")):
        for name, values in fixed.items():
            if fields.get(name) is not None and fields[name] not in values:
                raise ConfigError(
                    f"{where} is a variant of EAGLE-3 that can't be run (field '{place}{name}': "
                    f"{shown(fields[name])})."
                )
    source = Fields(data, where)
    size = source.integer("target_hidden_size", target.hidden_size)
    if size != target.hidden_size or source.integer("hidden_size") != size:
        raise ConfigError(
            f"{where} is a draft for a model whose hidden_size is {size}, with one of its own of "
            f"{source.integer('hidden_size')}; only those of {target.hidden_size} can run beside this model."
        )
    return {
        "kind": "eagle3",
        "head_rows": source.integer("draft_vocab_size", target.vocab_size),
        "taps": _taps(data.get(_IDS), inner.get(_IDS), target.num_hidden_layers, where),
        "logit_scale": 1.0,
        "residual_scale": 1.0,
        "output_norm": True,
    }


def _taps(into: Any, after: Any, layers: int, where: str) -> tuple[int, ...]:
    """into, after: the two lists, see `eagle3_fields`."""
    lists = []
    for listed, name, earlier in ((into, _IDS, 1), (after, f"eagle_config.{_IDS}", 0)):
        if listed is None or listed == []:
            continue
        sound = isinstance(listed, list) and all(type(each) is int for each in listed)
        taps = sorted({each - earlier for each in listed}) if sound else []
        if not taps or len(taps) < len(listed) or not 0 <= taps[0] <= taps[-1] < layers:
            raise ConfigError(
                f"The field '{name}' of {where} is {shown(listed)}: no list of different layers of a model "
                f"with {layers}, whose outputs a draft could read."
            )
        lists.append(tuple(taps))
    if len({*lists}) > 1:
        raise ConfigError(
            f"{where} names other layers in '{_IDS}', which has the numbers of those that a hidden state "
            "goes into, than in its 'eagle_config', which has those that it comes from; remove the wrong one."
        )
    return lists[0] if lists else usual_taps(layers)
