"""What the tensors of drafts are called in public checkpoints, where that is not their name in a bundle."""

from __future__ import annotations

from collections.abc import Mapping

from edge.config.draft import EMBEDDING_NORM, FC, HIDDEN_NORM, DraftKind

MULTI_TOKEN = "multi_token.safetensors"
"""The file of a multi-token layer, which training leaves beside the folder of the model."""
_PREFIXES: Mapping[DraftKind, Mapping[str, str]] = {
    "eagle2": {},
    "eagle3": {
        EMBEDDING_NORM: "midlayer.input_layernorm.weight",
        HIDDEN_NORM: "midlayer.hidden_norm.weight",
        "layers.0.": "midlayer.",
    },
    "mtp": {
        EMBEDDING_NORM: "enorm.weight",
        HIDDEN_NORM: "hnorm.weight",
        FC: "eh_proj.weight",
        "layers.0.": "layer.",
    },
    "dspark": {HIDDEN_NORM: "hidden_norm.weight"},
}
"""What a name in a bundle begins with -> what it begins with there: SafeAILab's cnets.py, and the layer of
DeepSeek-V3 as `edge.model.network.multi_token` has it."""


def public_name(kind: DraftKind, name: str) -> str:
    """The name in a public checkpoint of a tensor of `edge.config.draft.draft_tensors`."""
    return _renamed(name, _PREFIXES[kind])


def bundle_name(kind: DraftKind, name: str) -> str:
    """The inverse of `public_name`; other names stay as they are."""
    return _renamed(name, {theirs: ours for ours, theirs in _PREFIXES[kind].items()})


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for start, other in prefixes.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name
