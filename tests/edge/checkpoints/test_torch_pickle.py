"""The restricted reader of PyTorch files: equal to torch on real files, deaf to everything but tensors."""

from __future__ import annotations

import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.torch_pickle import TorchFile
from edge.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("protocol", [2, 4])
def test_state_dict_equals_torch(tmp_path: Path, protocol: int) -> None:
    torch.manual_seed(0)
    base = torch.randn(40, 30)
    state = OrderedDict((name, torch.randn(5, 7).to(dtype)) for name, dtype in DTYPES.items())
    state["transposed"] = base.t()
    state["slice"] = base[3:20:2, 4:9]
    state["shared"] = base
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.empty(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.randn(4))
    state["int"] = torch.arange(5)
    state["step"] = 12  # type: ignore[assignment]  # not a tensor: left out
    torch.save(state, tmp_path / "m.bin", pickle_protocol=protocol)
    file = TorchFile(tmp_path / "m.bin")
    assert set(file.tensors) == set(state) - {"step"}
    for name, tensor in state.items():
        if name in ("int", "step"):
            continue
        assert file.tensors[name].shape == tuple(tensor.shape)
        values = file.read_float32(name)
        assert values.dtype == np.float32 and values.flags.c_contiguous
        np.testing.assert_array_equal(values, tensor.detach().float().numpy())
    for name, dtype in DTYPES.items():
        assert (
            file.tensors[name].dtype == name == next(key for key, value in DTYPES.items() if value == dtype)
        )
    with pytest.raises(CheckpointError, match=r"'int'.*type I64"):
        file.read_float32("int")
    with pytest.raises(CheckpointError, match="no tensor 'other'"):
        file.read_float32("other")


def test_a_modules_state_dict_with_its_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "m.bin")  # an OrderedDict with an attribute
    file = TorchFile(tmp_path / "m.bin")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(file.read_float32(name), tensor.numpy())


class Malicious:
    """Unpickling it runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "__builtin__.eval")])
def test_code_is_named_and_never_run(tmp_path: Path, function: Any, name: str) -> None:
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    path = tmp_path / "m.bin"
    torch.save({"weight": torch.ones(2), "extra": Malicious(function, argument)}, path)
    with pytest.raises(CheckpointError, match=name):
        TorchFile(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack itself is real
    assert marker.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        TorchFile(tmp_path / "m.bin")


def rewrite(source: Path, target: Path, program: bytes) -> None:
    """Copy a torch file with another pickle inside."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = program if entry.filename.endswith("data.pkl") else old.read(entry)
            new.writestr(entry.filename, data)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cposix\nsystem\nU\x04trueoR.",
        b"\x80\x02(S'true'\niposix\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02ccollections\nOrderedDict\n}b.",  # BUILD on a function
        b"\x80\x02]K\x01R.",  # a call of a list
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02K\x01.",  # a state dict that is a number
        b"\x80\x02}",  # no end
        b"\x80\x02t.",
        b"\xff\xff\xff",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",
    ],
)
def test_hostile_pickles_end_in_one_sentence(tmp_path: Path, program: bytes) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.bin")
    rewrite(tmp_path / "good.bin", tmp_path / "bad.bin", program)
    with pytest.raises(CheckpointError, match=r"bad\.bin"):
        TorchFile(tmp_path / "bad.bin")


def test_tensors_cannot_reach_outside_their_storage(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(6, 5)}, tmp_path / "good.bin")
    with zipfile.ZipFile(tmp_path / "good.bin") as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    rewrite(tmp_path / "good.bin", tmp_path / "same.bin", program)
    np.testing.assert_array_equal(TorchFile(tmp_path / "same.bin").read_float32("weight"), np.ones((6, 5)))
    shape = b"K\x06K\x05\x86"
    assert program.count(shape) == 1
    for other in (
        b"K\x07K\x05\x86",
        b"K\x06K\x06\x86",
        b"J\xff\xff\xff\x7fK\x05\x86",
        b"J\xff\xff\xff\xffK\x05\x86",
    ):
        rewrite(tmp_path / "good.bin", tmp_path / "bad.bin", program.replace(shape, other))
        with pytest.raises(CheckpointError, match=r"reaches beyond its data|pickle is invalid"):
            TorchFile(tmp_path / "bad.bin")


def test_old_format_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="old pickle format"):
        TorchFile(path)
    torch.save({"weight": torch.ones(300)}, path)
    data = path.read_bytes()
    for content in (b"", b"PK", data[: len(data) // 2], data[:-10], b"not a zip file at all"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or not a PyTorch checkpoint"):
            TorchFile(path)
    with pytest.raises(CheckpointError, match="Cannot read"):
        TorchFile(tmp_path / "none.bin")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


FLOATS = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    """The operations that push a tensor over the first storage, of 6 floats."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + FLOATS + offset + shape + strides + b"tR"


ONE = tensor(b"K\x06\x85", b"K\x01\x85")
LARGE = b"J\xff\xff\xff\x00"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        # 1.1 GB from one float; and from six by a row that is there four times
        (b"}" + text("w") + tensor(LARGE + LARGE + b"\x86", b"K\x00K\x00\x86") + b"s.", "repeats its data"),
        (b"}" + text("w") + tensor(b"K\x04K\x06\x86", b"K\x00K\x01\x86") + b"s.", "repeats its data"),
        (b"}(" + b"".join(text(f"w{i}") + ONE for i in range(9)) + b"u.", "over and over"),
        (
            b"}" + text("w") + tensor(b"(" + b"K\x01" * 9 + b"t", b"(" + b"K\x01" * 9 + b"t") + b"s.",
            "9 dimensions",
        ),
        (
            b"}" + text("w") + tensor(b"\x8a\x08" + b"\xff" * 7 + b"\x00\x85", b"K\x00\x85") + b"s.",
            "storage and sizes",
        ),
        (b"}" + text("w\n") + ONE + b"s.", "control characters"),
        (b"}" + b"X\x03\x00\x00\x00\xed\xa0\x80" + ONE + b"s.", "control characters"),
        (b"}K\x01\x85K\x01s.", "a key that is no text"),
        (b"}\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fK\x01s.", "a key that is no text"),  # hashes to 0
        (b"ccollections\nOrderedDict\n(]tR.", "OrderedDict with other arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n(" + b"K\x01" * 5 + b"tR.", "with other arguments"),
        (b"}" + b"]" * (1 << 19) + b".", "more than 524288 operations"),
        (b"\x8d" + b"\xff" * 8, "pickle is invalid"),  # BINUNICODE8 of 2^64 bytes
        (b"\x8d" + (1 << 40).to_bytes(8, "little") + b"a", "pickle is invalid"),
        (b"L" + b"9" * 5000 + b"L\n.", "pickle is invalid"),
        (b"c" + b"m" * 100_000 + b"\nf\n.", r"asks for 'm{80}\.\.\.', which"),
    ],
)
def test_pickles_that_grow_are_refused(tmp_path: Path, program: bytes, says: str) -> None:
    torch.save({"weight": torch.ones(6)}, tmp_path / "good.bin")
    rewrite(tmp_path / "good.bin", tmp_path / "bad.bin", b"\x80\x02" + program)
    with pytest.raises(CheckpointError, match=says) as caught:
        TorchFile(tmp_path / "bad.bin")
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_tied_tensors_and_views_may_share_their_data(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(6)}, tmp_path / "good.bin")
    pairs = b"".join(text(name) + ONE for name in ("embedding", "head", "a", "b"))
    rewrite(tmp_path / "good.bin", tmp_path / "tied.bin", b"\x80\x02}(" + pairs + b"u.")
    file = TorchFile(tmp_path / "tied.bin")
    np.testing.assert_array_equal(file.read_float32("head"), np.ones(6))


def test_zip_files_that_inflate_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(6)}, tmp_path / "good.bin")
    for size, kind, says in (
        (1 << 25, zipfile.ZIP_DEFLATED, "compressed"),
        (10, zipfile.ZIP_BZIP2, "compressed"),
        ((16 << 20) + 1, zipfile.ZIP_STORED, "more than 16 MiB"),
    ):
        with zipfile.ZipFile(tmp_path / "bad.bin", "w", kind) as archive:
            archive.writestr("m/data.pkl", b"]" * size)
        with pytest.raises(CheckpointError, match=says):
            TorchFile(tmp_path / "bad.bin")


def test_a_long_table_of_contents_is_refused(tmp_path: Path) -> None:
    table = 17 << 20
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, table, 2, 0)
    (tmp_path / "m.bin").write_bytes(b"PK" + bytes(table) + end)
    with pytest.raises(CheckpointError, match="table of contents is too long"):
        TorchFile(tmp_path / "m.bin")


def test_names_in_a_zip_file_that_are_not_utf8(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(6)}, tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    at = data.index(b"PK\1\2")
    name = data[at + 46 : at + 50]
    changed = data[:at] + data[at:].replace(name, b"\xff\xff\xff\xff")
    (tmp_path / "m.bin").write_bytes(
        changed[: at + 8] + b"\x00\x08" + changed[at + 10 :]
    )  # "its name is UTF-8"
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        TorchFile(tmp_path / "m.bin")
