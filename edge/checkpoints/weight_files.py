"""Which files of a Hugging Face folder are its weights: names only, in transformers' order of preference."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from edge.config.fields import listed
from edge.errors import CheckpointError
from edge.system.notices import notice

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
    # packers invent names of their own
    names = [name for name in _all_weights(folder) if name.endswith(".safetensors")]
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
    if single := gguf_files(folder):
        return f"'{folder}' has no weights but {listed(single[:4])}; name a GGUF file itself."
    return (
        f"'{folder}' has a config.json but no weights ({SAFETENSORS} or {TORCH}, whole or in shards); "
        "download them too."
    )


def unused_weights(folder: Path, used: Collection[str]) -> list[str]:
    """Other files in the folder that look like weights."""
    return [name for name in (*_all_weights(folder), *gguf_files(folder)) if name not in used]


def gguf_files(folder: Path) -> list[str]:
    """Names of the GGUF files in a folder, each of which is a model of its own."""
    return _names(folder, "*.gguf")


def shard_of(
    weight_map: Mapping[str, str], held: Mapping[str, Collection[str]], index: Path
) -> Iterable[tuple[str, str]]:
    """Every tensor of the shards with its shard.

    weight_map: what the `index` says. held: the tensors of each shard. A tensor that the index leaves out
    counts too, as in transformers, and a notice says so; CheckpointError for one that a shard lacks or that
    stands in two.
    """
    for tensor, shard in weight_map.items():
        if tensor not in held[shard]:
            raise CheckpointError(
                f"'{index.parent / shard}' lacks tensor '{tensor}' that {index.name} places there; download "
                "both again."
            )
    found = dict(weight_map)
    for shard, tensors in held.items():
        for tensor in tensors:
            other = found.setdefault(tensor, shard)
            if other != shard:
                raise CheckpointError(
                    f"'{index.parent}' has tensor '{tensor}' in {other} and in {shard}; download or save its "
                    f"shards and {index.name} again."
                )
    left_out = [tensor for tensor in found if tensor not in weight_map]
    if left_out:
        some = left_out if len(left_out) < 5 else [*left_out[:3], f"{len(left_out) - 3} more"]
        notice(f"'{index}' leaves out {listed(some)}: used all the same, as transformers does.")
    return found.items()


def _all_weights(folder: Path) -> list[str]:
    return _names(folder, *_LIKE_WEIGHTS)


def _names(folder: Path, *patterns: str) -> list[str]:
    """Files by their names, without hidden ones: macOS leaves a ._NAME beside a file."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def _index_of(name: str) -> str | None:
    """The index that belongs to a shard; None for a file that is no shard, or the only one."""
    match = _SHARD.fullmatch(name)
    return None if match is None or int(match[2]) == 1 else f"{match[1]}{match[3]}{INDEX}"
