"""Which files of a folder are its weights, by names alone; the sentences are whole however many there are."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from edge.checkpoints.weight_files import shard_of, unused_weights, weights_name, why_no_weights
from edge.errors import CheckpointError


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).touch()
    return path


ORDER = [
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
]


@pytest.mark.parametrize("first", range(4))
def test_the_best_of_what_is_there(tmp_path: Path, first: int) -> None:
    """In transformers' order."""
    folder = folder_of(tmp_path, *ORDER[first:], "other.safetensors")
    assert weights_name(folder) == ORDER[first]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["mine.safetensors"], "mine.safetensors"),
        (["mine.safetensors", "._mine.safetensors", "consolidated.00.pth"], "mine.safetensors"),
        (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors"),
        (["model-00002-of-00002.safetensors"], None),
        (["a.safetensors", "b.safetensors"], None),
        (["consolidated.00.pth"], None),
        (["mine.bin"], None),
        ([], None),
    ],
)
def test_a_name_of_ones_own(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    assert weights_name(folder_of(tmp_path, *names)) == chosen


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["model-00002-of-00002.safetensors"], "'model.safetensors.index.json' is missing"),
        (["pytorch_model-00001-of-00003.bin"], "'pytorch_model.bin.index.json' is missing"),
        (["a.safetensors", "b.safetensors"], "has a.safetensors and b.safetensors, but nothing says which"),
        ([f"{letter}.gguf" for letter in "fedcba"], "no weights but a.gguf, b.gguf, c.gguf and d.gguf;"),
        ([], "has a config.json but no weights (model.safetensors or pytorch_model.bin"),
    ],
)
def test_why_there_are_none(tmp_path: Path, names: list[str], says: str) -> None:
    sentence = why_no_weights(folder_of(tmp_path, *names))
    assert says in sentence and sentence.endswith(".")


def test_what_is_not_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b.safetensors", "a.safetensors", "x.gguf", ".h.gguf", "config.json")
    assert unused_weights(folder, ["a.safetensors"]) == ["b.safetensors", "x.gguf"]


@pytest.mark.parametrize(
    ("count", "says"),
    [(1, "leaves out t0:"), (4, "leaves out t0, t1, t2 and t3:"), (5, "leaves out t0, t1, t2 and 2 more:")],
)
def test_tensors_beside_the_index_count(count: int, says: str) -> None:
    held = {"one": ["w", *(f"t{i}" for i in range(count))], "two": ["v"]}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = dict(shard_of({"w": "one", "v": "two"}, held, Path("m.index.json")))
    assert found == {"w": "one", "v": "two", **{f"t{i}": "one" for i in range(count)}}
    (sentence,) = [str(each.message) for each in told]
    assert says in sentence


def test_shards_that_contradict_the_index_or_each_other() -> None:
    index = Path("folder/m.index.json")
    with pytest.raises(CheckpointError, match=r"'folder/one' lacks tensor 'v' that m\.index\.json places"):
        shard_of({"w": "one", "v": "one"}, {"one": ["w"]}, index)
    with pytest.raises(CheckpointError, match="'folder' has tensor 'w' in one and in two"):
        shard_of({"w": "one"}, {"one": ["w"], "two": ["w"]}, index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said where nothing is odd
        assert dict(shard_of({"w": "one"}, {"one": ["w"]}, index)) == {"w": "one"}
