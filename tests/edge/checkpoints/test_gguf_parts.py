"""GGUF files in parts, written by the gguf package: the same model, whichever part is named, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.errors import CheckpointError
from edge.formats.gguf_parts import first_part, part_name, parts_beside
from edge.hub.resolve import open_bundle, open_checkpoint, open_model, plan_model
from edge.quant.scheme import QuantizedMatrix
from tests.fuzz.seeds import gguf_file
from tests.split_gguf import split_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model of 11 tensors in one file."""
    gguf_file(tmp_path)
    return tmp_path / "m.gguf"


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same in three parts."""
    (tmp_path / "split").mkdir()
    found = split_gguf(whole, tmp_path / "split" / "model.gguf", 4)
    assert [part.name for part in found] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


def plain(checkpoint: GGUFCheckpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for info in checkpoint.tensors:
        matrix = checkpoint.read(info.name)
        found[info.name] = matrix.dequantize() if isinstance(matrix, QuantizedMatrix) else matrix
    return found


@pytest.mark.parametrize("small_first_shard", [False, True])
def test_any_part_is_the_whole(whole: Path, tmp_path: Path, small_first_shard: bool) -> None:
    """small_first_shard: the first part has the metadata and no tensors, as many downloads have it."""
    wanted = GGUFCheckpoint(whole)
    names = {info.name for info in wanted.tensors}
    (tmp_path / "split").mkdir()
    parts = split_gguf(whole, tmp_path / "split" / "m.gguf", 5, small_first_shard=small_first_shard)
    assert len(parts) == 3 + small_first_shard
    for part in parts:
        found = GGUFCheckpoint(part)
        assert found.config == wanted.config and found.chat_template == wanted.chat_template
        assert found.tokenizer_files == wanted.tokenizer_files
        tensors, expected = plain(found), plain(wanted)
        assert tensors.keys() == expected.keys() == names
        for name, values in expected.items():
            np.testing.assert_array_equal(tensors[name], values)


def test_all_parts_are_one_model_in_the_cache(whole: Path, parts: list[Path]) -> None:
    bundles = [open_bundle(part) for part in reversed(parts)]
    assert len({bundle.path for bundle in bundles}) == 1
    assert bundles[0].source == str(parts[0])
    for name in open_bundle(whole).tensors:
        np.testing.assert_array_equal(bundles[0].data(name), open_bundle(whole).data(name))
    checkpoint, _ = open_checkpoint(parts[1])
    assert checkpoint.source == plan_model(parts[2]).source == str(parts[0])
    # A changed part asks for another conversion, whichever part is named.
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    again = {open_bundle(part).path for part in parts}
    assert len(again) == 1 and again != {bundles[0].path}


def test_a_whole_file_with_the_name_of_a_part_is_itself(whole: Path, tmp_path: Path) -> None:
    """Only the contents say that a file is split."""
    first, second = (tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"something else")
    whole.rename(second)
    assert open_model(second).source == str(second)
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        open_model(first)


def test_what_a_name_says() -> None:
    part = part_name("a/b-00002-of-00003.GGUF")
    assert part is not None and part.all == tuple(f"a/b-0000{n}-of-00003.GGUF" for n in (1, 2, 3))
    for name in (
        "m.gguf",
        "m-00000-of-00002.gguf",
        "m-00003-of-00002.gguf",
        "m-1-of-2.gguf",
        "-00001-of-00001.gguf",
    ):
        assert part_name(name) is None


def test_other_files_are_left_alone(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    split_gguf(whole, parts[0].with_name("other.gguf"), 4)
    assert parts_beside(parts[1]) == parts and first_part(parts[2]) == parts[0]
    assert parts_beside(whole) == [whole] and first_part(whole) == whole
    parts[0].unlink()
    assert parts_beside(parts[1]) == parts[1:] and first_part(parts[2]) == parts[2]


def refused(path: Path, *says: str) -> None:
    for opened in (GGUFCheckpoint, open_model):
        with pytest.raises(CheckpointError) as caught:
            opened(path)
        message = str(caught.value)
        assert all(word in message for word in says), message
        assert message.isprintable() and message.count(". ") == 0


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[1].unlink()
    refused(parts[0], "part 1 of 3", "beside it is no 'model-00002-of-00003.gguf';")
    parts[0].unlink()
    refused(parts[2], "part 3 of 3", "no 'model-00001-of-00003.gguf' and 1 more;")


def test_a_part_under_another_name(parts: list[Path]) -> None:
    moved = parts[1].rename(parts[1].with_name("b.gguf"))
    refused(moved, "b.gguf' is part 2 of 3", "name does not end in -00002-of-00003.gguf")
    third = parts[2].rename(parts[1])
    refused(third, "is part 3 of 3", "name does not end in -00003-of-00003.gguf")
    moved.rename(parts[2])
    refused(parts[0], "00002-of-00003.gguf' is no part of the file", "'split.no' is 2, not 1")


def rewritten(part: Path, changes: dict[str, Any]) -> None:
    """The same tensors under other metadata; None leaves a key out."""
    reader = gguf.GGUFReader(part)
    tensors = [(tensor.name, np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors]
    writer = gguf.GGUFWriter(part, "llama")
    fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("split.")}
    writer.kv_data[0].pop("general.architecture")
    for key, value in {**fields, **changes}.items():
        if value is not None:
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.INT32
            writer.add_key_value(key, value, kind)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"split.count": 4},
            "is no part of the file that 'model-00001-of-00003.gguf' begins: its field 'split.count'",
        ),
        ({"split.tensors.count": 99}, "its field 'split.tensors.count' is 99, not 11"),
        ({"general.architecture": "qwen3"}, "its field 'general.architecture' is 'qwen3', not 'llama'"),
        ({"split.no": None}, "The field 'split.no' of"),
        ({"split.count": None}, "The field 'split.count' of"),
        ({"split.tensors.count": "12"}, "The field 'split.tensors.count' of"),
    ],
)
def test_a_part_of_another_file(parts: list[Path], changes: dict[str, Any], says: str) -> None:
    rewritten(parts[1], changes)
    refused(parts[0], says, "00002-of-00003.gguf")


def test_parts_with_the_tensors_of_others(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    """Of the same model, split otherwise: a tensor is there twice, or is missing."""
    (tmp_path / "five").mkdir()
    five = split_gguf(whole, tmp_path / "five" / "model.gguf", 5)
    assert len(five) == 3
    kept = parts[1].read_bytes()
    parts[1].write_bytes(five[1].read_bytes())
    refused(parts[0], "has the tensor 'blk.0.", "which another part of the file")
    parts[1].write_bytes(kept)
    parts[2].write_bytes(five[2].read_bytes())
    refused(parts[0], "have 9 tensors together, but 'split.tensors.count' says 11")


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-64])
    refused(parts[0], "00002-of-00003.gguf' is truncated or damaged")
    parts[1].write_bytes(b"")
    refused(parts[2], "00002-of-00003.gguf")
