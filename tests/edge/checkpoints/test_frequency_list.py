"""Lists of frequent tokens: those that torch writes, those that torch reads, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.frequency_list import (
    read_frequency_list,
    with_end_tokens,
    write_frequency_list,
)
from edge.errors import CheckpointError

VOCABULARY = 73448
IDS = np.random.default_rng(5).permutation(VOCABULARY)[:3000].tolist()


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_torch(tmp_path: Path, protocol: int) -> None:
    forms: dict[str, Any] = {
        "freq_3000.pt": IDS,
        "tensor.pt": torch.tensor(IDS, dtype=torch.int32),
        "long.pt": torch.tensor(IDS),
        "part.pt": torch.tensor([IDS, IDS]).t()[:, 1],  # strided
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / name, pickle_protocol=protocol)
        ids = read_frequency_list(tmp_path / name, VOCABULARY)
        assert ids.dtype == np.int32 and ids.tolist() == IDS


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    for dtype in (np.int64, np.uint16, np.dtype(">i4")):
        np.save(tmp_path / f"{np.dtype(dtype).name}.npy", np.array(IDS[:100]) % 65536, allow_pickle=False)
    assert read_frequency_list(tmp_path / "ids.json", VOCABULARY).tolist() == IDS
    np.save(tmp_path / "big.npy", np.array(IDS, ">i4"))
    assert read_frequency_list(tmp_path / "big.npy", VOCABULARY).tolist() == IDS


@pytest.mark.parametrize("name", ["freq_3000.pt", "ids.npy", "ids.json"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_frequency_list(tmp_path / name, np.array(IDS, np.int32))
    assert read_frequency_list(tmp_path / name, VOCABULARY).tolist() == IDS
    first = (tmp_path / name).read_bytes()
    write_frequency_list(tmp_path / name, IDS)
    assert (tmp_path / name).read_bytes() == first  # the same ids, the same file
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith(".pt"):
        loaded = torch.load(tmp_path / name, weights_only=True)  # as CPM.cu does
        assert type(loaded) is list and loaded == IDS


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"let it end in \.pt, \.npy, \.json"):
        write_frequency_list(tmp_path / "freq.txt", IDS)
    with pytest.raises(CheckpointError, match=r"Cannot write|cannot be written"):
        write_frequency_list(tmp_path / "none" / "freq_1.pt", [1])


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ([], "holds no token ids"),
        (torch.tensor([], dtype=torch.int32), "holds no token ids"),
        ([5, 6, 5], "holds the token id 5 more than once"),
        (
            [5, VOCABULARY],
            f"token id {VOCABULARY}, which lies outside the model's vocabulary of {VOCABULARY}",
        ),
        ([5, -1], "token id -1, which lies outside"),
        ([5, 1 << 70], "holds no list of whole numbers"),
        ([1.0, 2.0], "holds no list of whole numbers"),
        ([True, False], "holds no list of whole numbers"),
        (torch.tensor([1.0, 2.0]), "holds no list of whole numbers"),
        (torch.tensor([1.0, 2.0]).bfloat16(), "holds no list of whole numbers"),
        (torch.tensor([True]), "holds no list of whole numbers"),
        (torch.tensor([[1, 2]]), "holds no list of whole numbers"),
        (OrderedDict(ids=torch.tensor([1, 2])), "holds no list of whole numbers"),
        ([Harmful()], "asks for '?.*print.*it was not run"),
    ],
)
def test_lists_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: Any, says: str
) -> None:
    torch.save(saved, tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=says) as caught:
        read_frequency_list(tmp_path / "list.pt", VOCABULARY)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "freq_3000.pt"
    torch.save(IDS, path)
    whole = path.read_bytes()
    for cut in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"truncated or not a PyTorch|Cannot read"):
            read_frequency_list(path, VOCABULARY)
    torch.save(torch.tensor(IDS), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"truncated"):
        read_frequency_list(path, VOCABULARY)
    torch.save(IDS[:2999], path)
    with pytest.raises(
        CheckpointError, match=r"holds 2999 token ids, but its name says 3000: it is truncated"
    ):
        read_frequency_list(path, VOCABULARY)
    torch.save(IDS, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old pickle format"):
        read_frequency_list(path, VOCABULARY)
    path.write_bytes(pickle.dumps(IDS))
    with pytest.raises(CheckpointError, match=r"not a zip file"):
        read_frequency_list(path, VOCABULARY)
    for name, data in (
        ("a.npy", b"\x93NUMPY\x01"),
        ("b.npy", whole),
        ("c.json", b"[1, 2"),
        ("d.json", b"{}"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=r"truncated|not valid JSON|holds no list"):
            read_frequency_list(tmp_path / name, VOCABULARY)
    with pytest.raises(CheckpointError, match=r"Cannot read"):
        read_frequency_list(tmp_path / "none.pt", VOCABULARY)


@pytest.mark.parametrize("length", [1 << 50, 1 << 70])
def test_a_numpy_header_that_promises_too_much(tmp_path: Path, length: int) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (length,)})
    (tmp_path / "long.npy").write_bytes(file.getvalue())
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and nothing more")
    for name in ("long.npy", "zip.npy"):
        with pytest.raises(CheckpointError, match="truncated or not a NumPy file"):
            read_frequency_list(tmp_path / name, 100)


def test_end_tokens_are_always_in() -> None:
    ids = np.array([9, 8, 7, 6, 5], np.int32)
    assert with_end_tokens(ids, ()).tolist() == [9, 8, 7, 6, 5]
    assert with_end_tokens(ids, (5, 8)).tolist() == [9, 8, 7, 6, 5]
    assert with_end_tokens(ids, (2, 2)).tolist() == [9, 8, 7, 6, 2]
    assert with_end_tokens(ids, (2, 5, 3)).tolist() == [9, 8, 5, 2, 3]  # an end token that is there stays
    with pytest.raises(CheckpointError, match=r"A list of 5 token ids is too short for a model with 5 end"):
        with_end_tokens(ids, range(5))
