"""GGUF containers that lie: every announced length, type and place is checked before it is believed.

Files are packed here by hand, after llama.cpp's description of the format (ggml/docs/gguf.md).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.errors import CheckpointError
from edge.formats.gguf_file import GGUFFile

UINT8, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 5, 6, 7, 8, 9
F32, Q4_0 = 0, 2


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def info(name: bytes, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def container(
    fields: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    tensors, keys = counts or (len(infos), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(fields) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data if infos else head


ALIGNMENT = b"general.alignment"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "its end can't be there"),
        (container(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (container(counts=(1 << 40, 0)), "1099511627776 tensors can't be there"),
        (container(counts=(0, 1 << 63)), "fields can't be there"),
        # the 49 bytes that kept the `gguf` package busy until the memory was full
        (container((field(b"k", ARRAY, array(UINT8, 1 << 40)),)), "entries of 'k' can't be there"),
        (container((field(b"k", ARRAY, array(STRING, 1 << 61)),)), "entries of 'k' can't be there"),
        (container((field(b"k", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"a"))),)), "unknown type 9"),
        (container((field(b"k", 13, b""),)), "unknown type 13"),
        (container((field(b"k", STRING, struct.pack("<Q", 1 << 50)),)), "bytes of text can't be there"),
        (container((field(b"k", STRING, text(b"\xff")),)), "not UTF-8"),
        (container((field(b"\xed\xa0\x80", UINT8, b"a"),)), "not UTF-8"),
        (container((field(b"k\0", UINT8, b"a"),)), "control characters"),
        (container((field(b"", UINT8, b"a"),)), "is empty"),
        (container((field(b"k", UINT8, b"a"), field(b"k", UINT8, b"a"))), "'k' is there twice"),
        (
            container((field(b"k", ARRAY, array(UINT8, (1 << 22) + 1, bytes((1 << 22) + 1))),)),
            "more than 4194304",
        ),
        (container((field(ALIGNMENT, INT32, struct.pack("<i", 0)),)), "alignment 0 is not a power of 2"),
        (container((field(ALIGNMENT, INT32, struct.pack("<i", 48)),)), "alignment 48"),
        (container((field(ALIGNMENT, INT32, struct.pack("<i", -32)),)), "alignment -32"),
        (container((field(ALIGNMENT, STRING, text(b"32")),)), "alignment '32'"),
        (container((field(ALIGNMENT, BOOL, b"\1"),)), "alignment True"),
        (container((), (info(b"w", (4,) * 5),), bytes(9999)), "5 dimensions"),
        (container((), (info(b"w", (1 << 32, 1 << 32)),), bytes(64)), "'w' reaches beyond its end"),
        (container((), (info(b"w", (1 << 63, 2)),), bytes(64)), "'w' reaches beyond its end"),
        (container((), (info(b"w", (0, 1 << 63)),), bytes(64)), "'w' is empty"),
        (container((), (info(b"w", (1 << 40, 1 << 40, 0)),), bytes(64)), "'w' is empty"),
        (container((), (info(b"w", (8,), offset=(1 << 64) - 32),), bytes(64)), "beyond its end"),
        (container((), (info(b"w", (8,), offset=64),), bytes(64)), "beyond its end"),
        (container((), (info(b"w", (8,), offset=4),), bytes(64)), "not aligned"),
        (
            container(
                (field(ALIGNMENT, INT32, struct.pack("<i", 64)),), (info(b"w", (8,), offset=32),), bytes(128)
            ),
            "not aligned to 64",
        ),
        (container((), (info(b"w", (8,)), info(b"w", (8,), offset=32)), bytes(64)), "'w' is there twice"),
        (container((), (info(b"v", (9,)), info(b"w", (8,), offset=32)), bytes(64)), "'v' and 'w' overlap"),
        (container((), (info(b"w", (33,), Q4_0),), bytes(64)), "whole number of blocks"),
        (container((), (info(b"w", (8,), 4),), bytes(64)), "type number 4"),  # Q4_2, removed long ago
        (container((), (info(b"w", (8,), 1 << 31),), bytes(64)), "type number"),
        (container((), (info(b"w\x1b[2J", (8,)),), bytes(64)), "control characters"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        GGUFFile(path)
    assert "m.gguf" in str(caught.value) and str(caught.value).isprintable()


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        GGUFFile(tmp_path / "m.gguf")


def test_every_kind_of_field_and_tensor_as_the_gguf_package_writes_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    wanted = {"u8": 255, "i8": -128, "u16": 65535, "i16": -2, "u32": 1 << 31, "i32": -3, "u64": (1 << 64) - 1}
    wanted |= {"i64": -(1 << 63), "f32": 0.5, "f64": 1e300, "yes": True, "text": "ä\n"}
    kinds = {"u": "uint", "i": "int", "f": "float"}
    for key, value in wanted.items():
        kind = {"yes": "bool", "text": "string"}.get(key) or kinds[key[0]] + key[1:]
        getattr(writer, f"add_{kind}")(key, value)
    lists = {"ints": [1, -2], "floats": [0.5, 2.0], "texts": ["a", "", "ä"], "flags": [True, False]}
    for key, values in lists.items():
        writer.add_array(key, values)
    arrays = {
        "f32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "f16": np.arange(5, dtype=np.float16),
        "i32": np.arange(7, dtype=np.int32),
    }
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    blocks = np.arange(3 * 36, dtype=np.uint8).reshape(3, 36)
    writer.add_tensor("q4", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.metadata == {"general.architecture": "llama", **wanted, **lists}
    assert all(type(file.metadata[key]) is type(value) for key, value in wanted.items())
    found = {tensor.name: tensor for tensor in file.tensors}
    assert list(found) == [*arrays, "q4"]
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name].data, values, strict=True)
        assert found[name].shape == values.shape[::-1]
    np.testing.assert_array_equal(found["q4"].data, blocks, strict=True)
    assert found["q4"].shape == (64, 3) and found["q4"].tensor_type.name == "Q4_0"


def test_the_largest_arrays_and_shapes_that_are_read(tmp_path: Path) -> None:
    """4,194,304 entries of all arrays together; four dimensions; tensors side by side up to the last byte."""
    half = 1 << 21
    fields = [field(name, ARRAY, array(UINT8, half, bytes(half))) for name in (b"a", b"b")]
    infos = (info(b"v", (2, 2, 1, 2)), info(b"w", (8,), offset=32))
    path = tmp_path / "m.gguf"
    path.write_bytes(container(tuple(fields), infos, np.arange(16, dtype="<f4").tobytes(), version=2))
    file = GGUFFile(path)
    assert [len(file.metadata[name]) for name in "ab"] == [half, half]
    assert [tensor.data.reshape(-1)[-1] for tensor in file.tensors] == [7, 15]
    assert file.tensors[0].data.shape == (2, 1, 2, 2)
    path.write_bytes(container((*fields, field(b"c", ARRAY, array(UINT8, 1, b"x")))))
    with pytest.raises(CheckpointError, match="more than 4194304"):
        GGUFFile(path)


def test_integers_keep_their_signs(tmp_path: Path) -> None:
    kinds = {24: "<i1", 25: "<i2", 26: "<i4", 27: "<i8"}  # ggml's numbers of I8 to I64
    for kind, dtype in kinds.items():
        values = np.array([-1, 2, -3, 4], dtype)
        (tmp_path / "m.gguf").write_bytes(container((), (info(b"w", (4,), kind),), values.tobytes()))
        (tensor,) = GGUFFile(tmp_path / "m.gguf").tensors
        np.testing.assert_array_equal(tensor.data, values, strict=True)
