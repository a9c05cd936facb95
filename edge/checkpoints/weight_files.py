"""Which files of a Hugging Face folder are its weights: names only, in transformers' order of preference."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from edge.config.fields import listed

INDEX = ".index.json"
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, TORCH, TORCH + INDEX)
"""The names that `save_pretrained` gives to weights, best first."""
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)")
_LIKE_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth")


def weights_name(folder: Path) -> str | None:
    """The file with the weights, or the index of their shards: the best of WEIGHTS in a folder, or else its
    only safetensors file. None if there is none, or nothing says which."""
    known = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if known is not None:
        return known
    names = sorted(path.name for path in folder.glob("*.safetensors"))  # packers invent names of their own
    return names[0] if len(names) == 1 and _index_of(names[0]) is None else None


def why_no_weights(folder: Path) -> str:
    """The sentence for a folder in which `weights_name` finds none."""
    found = _all_weights(folder)
    for name in found:
        index = _index_of(name)
        if index is not None:
            return (
                f"'{folder}' has shards of weights ({name}), but '{index}' is missing, which says what lies "
                "in which; download it too."
            )
    if found:
        return (
            f"'{folder}' has {listed(found)}, but nothing says which of them are the weights; rename the one "
            f"file to {SAFETENSORS}, or add the index of shards, {SAFETENSORS}{INDEX}."
        )
    return (
        f"'{folder}' has a config.json but no weights ({SAFETENSORS} or {TORCH}, whole or in shards); "
        "download them too."
    )


def unused_weights(folder: Path, used: Collection[str]) -> list[str]:
    """Other files in the folder that look like weights."""
    return [name for name in _all_weights(folder) if name not in used]


def _all_weights(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if any(fnmatch(path.name, like) for like in _LIKE_WEIGHTS)
    )


def _index_of(name: str) -> str | None:
    """The index that belongs to a shard; None for a file that is no shard, or the only one."""
    match = _SHARD.fullmatch(name)
    return None if match is None or int(match[2]) == 1 else f"{match[1]}{match[3]}{INDEX}"
