"""The safetensors reader and writer against the safetensors package and against damaged files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from edge.errors import CheckpointError
from edge.formats.safetensors import ALIGNMENT, SafetensorsFile, SafetensorsWriter

NUMPY = {
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


def write(path: Path, **arrays: np.ndarray) -> SafetensorsWriter:
    names = {np.dtype(dtype): name for name, dtype in NUMPY.items()}
    specs = [(name, names[array.dtype], array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, specs, {"made": "here"}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return writer


def some_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 100, (3, 5)).astype(dtype) for name, dtype in NUMPY.items()}
    return {
        **arrays,
        "vector": np.arange(64, dtype=np.uint8),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 4)),
    }


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = some_arrays()
    writer = write(tmp_path / "x.safetensors", **arrays)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (writer.bytes, writer.sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = some_arrays()
    save_file(arrays, tmp_path / "x.safetensors", metadata={"a": "b"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"a": "b"}
    for name, array in arrays.items():
        assert file.tensors[name].shape == array.shape
        read = file.array(name)
        assert read.dtype == array.dtype and not read.flags.writeable
        np.testing.assert_array_equal(read, array)


def test_eight_dimensions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header(entry(shape=(1,) * 7 + (4,)), b"1234"))
    assert SafetensorsFile(path).array("a").shape == (1,) * 7 + (4,)


def test_an_empty_tensor_may_share_its_place(tmp_path: Path) -> None:
    """It ends where the next one begins, whichever of them the header names first; the package agrees."""
    from safetensors.numpy import load_file

    parts = {name: {"dtype": "U8", "shape": [n], "data_offsets": [0, n]} for name, n in (("a", 4), ("b", 0))}
    for order in ("ab", "ba"):
        path = tmp_path / f"{order}.safetensors"
        path.write_bytes(header(json.dumps({name: parts[name] for name in order}).encode(), b"1234"))
        wanted, found = load_file(path), SafetensorsFile(path)
        assert {name: found.array(name).tolist() for name in "ab"} == {
            name: array.tolist() for name, array in wanted.items()
        }


def test_bfloat16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    values = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"w": values, "ids": torch.arange(3)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.tensors["w"].dtype == "BF16" and file.array("w").dtype == np.uint16
    np.testing.assert_array_equal(file.read_float32("w"), values.float().numpy())
    np.testing.assert_array_equal(file.read_float32("w"), values.float().numpy())  # pages come back
    with pytest.raises(CheckpointError, match=r"'ids'.*I64"):
        file.read_float32("ids")
    with pytest.raises(CheckpointError, match="'absent'"):
        file.array("absent")


def test_data_is_aligned_and_arrays_outlive_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", a=np.arange(128, dtype=np.uint8), b=np.arange(64, dtype=np.uint8))
    array = SafetensorsFile(tmp_path / "x.safetensors").array("b")
    assert array.ctypes.data % ALIGNMENT == 0
    assert array.sum() == 63 * 32


def test_pieces_in_order_only(tmp_path: Path) -> None:
    specs = [("a", "U8", (10,)), ("b", "U8", (4,))]
    with SafetensorsWriter(tmp_path / "x", specs) as writer:
        writer.write("a", np.arange(6, dtype=np.uint8))
        writer.write("a", np.arange(6, 10, dtype=np.uint8))
        writer.write("b", np.zeros(4, np.uint8))
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").array("a"), np.arange(10))
    for name, size in (("b", 4), ("a", 11)):
        with pytest.raises(ValueError, match=name), SafetensorsWriter(tmp_path / "y", specs) as writer:
            writer.write(name, np.zeros(size, np.uint8))
    with pytest.raises(ValueError, match="not written"), SafetensorsWriter(tmp_path / "y", specs) as writer:
        writer.write("a", np.zeros(10, np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), SafetensorsWriter(path, [("a", "U8", (10,))]) as writer:
        writer.write("a", np.zeros(5, np.uint8))
        raise RuntimeError
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "truncated"),
        (header(b"{"), "header"),
        (header(b"[]"), "header"),
        (header(b'{"a": 3}'), "header"),
        (header(entry(), b"123"), "asks for"),
        (header(entry(dtype="Q4"), b"1234"), "Q4"),
        (header(entry(shape=(5,)), b"12345"), "header"),
        (header(entry(offsets=(-4, 0)), b"1234"), "header"),
        (header(entry(shape=(-2, -2)), b"1234"), "header"),
        (header(entry(shape=(4.0,)), b"1234"), "header"),
        (header(entry(shape="4"), b"1234"), "header"),
        (header(entry(shape=(True, 4)), b"1234"), "header"),
        (header(entry(dtype=["U8"]), b"1234"), "unknown type of type list"),
        (header(entry(shape=(0, 1 << 62), offsets=(0, 0)), b""), "header"),
        (header(entry(shape=(1,) * 8 + (4,)), b"1234"), "header"),
        (header(entry(offsets=(4, 8)), b"12345678"), "places tensor 'a' at 4, not 0"),  # a hole
        (
            header(entry()[:-1] + b"," + entry()[1:].replace(b'"a"', b'"b"'), b"1234"),
            "places tensor '.' at 0, not 4",
        ),
        (header(entry()[:-1] + b"," + entry(dtype="I8")[1:], b"1234"), "'a' two values"),
        (header(entry(), b"12345"), "asks for"),
        (header(b'{"__metadata__": [["a", "b"]]}'), "header"),
        (header(b'{"__metadata__": {"a": 3}}'), "header"),
        (header(b"[" * 100_000), "deeper than 64"),
        (header(entry().replace(b'"a"', b'"\\ud800"'), b"1234"), "lone surrogate"),
        (header(entry().replace(b'"a"', b'"a\\u0000"'), b"1234"), "control characters"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        SafetensorsFile(path)
    assert "x.safetensors" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        SafetensorsFile(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="directory"):
        SafetensorsFile(tmp_path)
