"""Whatever a file holds, reading it gives data or one sentence: the guards for JSON, names and folders."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from edge.errors import CheckpointError
from edge.formats.guarded_json import decode_text, parse_json, parse_object
from edge.formats.model_folder import member, open_regular, read_member
from edge.formats.names import accept_file_name, accept_inner_path, accept_name


def parse(data: bytes | str) -> object:
    return parse_json(data, Path("some/config.json"), CheckpointError, "get it again")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value at line 1"),
        (b"{", "line 1"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),  # UTF-16, which json.loads would take
        (b'"\xed\xa0\x80"', "not UTF-8"),  # a surrogate in bytes, which json.loads would take
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 64"),
        (b"[" * 66 + b"]" * 66, "deeper than 64"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "deeper than 64"),
        (b"9" * 301, "number of 301 digits"),
        (b"9" * 100_000, "digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' two values"),
        (b"[" + b"0," * (1 << 22) + b"0]", "more than 4194304 values"),
        (b" " * ((64 << 20) + 1), "larger than 64 MiB"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_json_that_is_refused(data: bytes | str, says: str):
    with pytest.raises(CheckpointError, match=rf"^'some/config\.json' is not valid JSON: .*{says}.*again\.$"):
        parse(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),  # a byte order mark
        ('{"ä": "\\ud83d\\ude00 \\\\ud800"}', {"ä": "\U0001f600 \\ud800"}),
        (b'{"a": 1, "a": 1}', {"a": 1}),
        (b"[" * 65 + b"]" * 65, json.loads("[" * 65 + "]" * 65)),
        (b"[" + b"[]," * 100 + b"[]]", [[]] * 101),
        (b"[" + b"9" * 300 + b"]", [10**300 - 1]),
        (b'{"model_max_length": 1000000000000000019884624838656}', {"model_max_length": int(1e30)}),
        (b"[Infinity, null, true, 1e3]", [float("inf"), None, True, 1000.0]),
        (b'["%s", %s]' % (b"1" * 301, b"9" * 300), ["1" * 301, 10**300 - 1]),  # digits of a text
    ],
)
def test_json_that_is_read(data: bytes | str, value: object):
    assert parse(data) == value


@pytest.mark.parametrize(
    "number",
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e400", b"9" * 290 + b"e20", b"9" * 309 + b".0"],
)
def test_numbers_that_are_not_finite_are_refused_where_that_is_asked(number: bytes):
    """What is read so can be written as JSON again."""
    with pytest.raises(
        CheckpointError, match=r"is not valid JSON: it has the number \S+, which JSON can't say;"
    ):
        parse_json(b'{"a": [%s]}' % number, "It", CheckpointError, "get it again", finite=True)
    assert isinstance(parse(number), float)
    fine = b'[1e308, -0.5, 1e-999, "NaN", "1e999"]'
    assert parse_json(fine, "It", CheckpointError, "", finite=True) == [1e308, -0.5, 0.0, "NaN", "1e999"]


def test_an_object_is_an_object():
    assert parse_object(b"{}", "its header", CheckpointError, "get it again") == {}
    for other in (b"[]", b"3", b'"a"', b"null"):
        with pytest.raises(CheckpointError, match=r"^its header must hold a JSON object; get it again"):
            parse_object(other, "its header", CheckpointError, "get it again")


def test_text_is_utf8():
    assert decode_text("\ufeffä".encode(), "it", CheckpointError) == "ä"
    with pytest.raises(CheckpointError, match=r"^'t\.jinja' is not UTF-8"):
        decode_text(b"\xff", Path("t.jinja"), CheckpointError)


@pytest.mark.parametrize(
    "name",
    [
        "",
        3,
        None,
        [],
        "a\0b",
        "a\nb",
        "a\x1b[2J",
        "a\x85",
        "\ud800",
        "a\u202eb",
        "a\u2028b",
        "a\x1f",
        "a\x7f",
        "a\x9f",
        "a\u2029",
        "a\u202a",
        "a\u2066",
        "a\u2069",
        "x" * 1025,
        "ä" * 513,
    ],
)
def test_names_that_are_refused(name: object):
    for accept in (accept_name, accept_file_name, accept_inner_path):
        with pytest.raises(CheckpointError, match=r"^'m\.json' ") as caught:
            accept(name, Path("m.json"), CheckpointError)
        str(caught.value).encode()  # a message can be printed
        assert len(str(caught.value)) < 300


OUTSIDE = [
    "..",
    ".",
    "../a",
    "/a",
    "a/../b",
    "a//b",
    "a/",
    "a\\b",
    "..\\a",
    "C:a",
    "C:\\a",
    "a/b\\c",
    "a/./b",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "x" * 256, "ä" * 128])
def test_files_outside_the_folder_are_refused(name: str):
    for accept in (accept_file_name, accept_inner_path):
        with pytest.raises(CheckpointError, match=r"^'m\.json' names a file .* cannot belong to it"):
            accept(name, Path("m.json"), CheckpointError)


def test_names_that_are_taken():
    for name in ("model.layers.0.self_attn.q_proj.weight", "模型 v2.safetensors", "..a", "a..b", ".hidden"):
        assert accept_name(name, "it", CheckpointError) == name
        assert accept_file_name(name, "it", CheckpointError) == name
    assert accept_inner_path("a.mlpackage/Data/m.mlmodel", "it", CheckpointError)
    with pytest.raises(CheckpointError, match="another folder"):
        accept_file_name("a/b", "it", CheckpointError)


def test_the_longest_names_are_taken():
    """255 bytes of UTF-8 for a file, as common file systems hold; 1024 for a tensor or a whole path."""
    for name in ("x" * 255, "ä" * 127 + "x"):
        assert accept_file_name(name, "it", CheckpointError) == name
    for name in ("x" * 1024, "ä" * 512):
        assert accept_name(name, "it", CheckpointError) == name
    path = "/".join(["x" * 255, "y" * 255, "z" * 255, "w" * 256])
    assert len(path) == 1024
    with pytest.raises(CheckpointError, match="is too long"):  # by its last part
        accept_inner_path(path, "it", CheckpointError)
    assert accept_inner_path(path[:-1], "it", CheckpointError) == path[:-1]


def test_only_regular_files_are_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "zeros").symlink_to("/dev/zero")
        for name in ("pipe", "socket", "zeros", "."):
            with pytest.raises(OSError):
                open_regular(tmp_path / name)
    for name in ("pipe", "socket", "."):
        with pytest.raises(CheckpointError, match=f"^Cannot read .*{name}"):
            read_member(tmp_path, name, CheckpointError)


def test_links_stay_in_the_folder(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "real.txt").write_bytes(b"inside")
    (tmp_path / "secret.txt").write_bytes(b"outside")
    (folder / "inner.txt").symlink_to("real.txt")
    (folder / "outer.txt").symlink_to("../secret.txt")
    (folder / "twice.txt").symlink_to("outer.txt")
    (folder / "zeros.txt").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")
    assert read_member(folder, "inner.txt", CheckpointError) == b"inside"
    assert read_member(folder, "none.txt", CheckpointError) is None
    for name in ("outer.txt", "twice.txt", "zeros.txt", "up/secret.txt", "../secret.txt"):
        with pytest.raises(CheckpointError, match="outside the model's folder"):
            read_member(folder, name, CheckpointError)
    (tmp_path / "link").symlink_to("model")  # the folder itself may be a link: the user named it
    assert read_member(tmp_path / "link", "inner.txt", CheckpointError) == b"inside"
    with pytest.raises(CheckpointError, match="more than 5 bytes"):
        read_member(folder, "real.txt", CheckpointError, limit=5)
    assert read_member(folder, "real.txt", CheckpointError, limit=6) == b"inside"


def test_hub_snapshots_link_to_their_blobs(tmp_path: Path):
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "abc").write_bytes(b"blob")
    (repo / "refs").write_bytes(b"no blob")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "other.json").symlink_to("../../refs")
    assert read_member(snapshot, "config.json", CheckpointError) == b"blob"
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        member(snapshot, "other.json", CheckpointError)
    evil = tmp_path / "evil"
    (evil / "snapshots" / "0123").mkdir(parents=True)
    (evil / "blobs").symlink_to(tmp_path)  # blobs that are elsewhere are not its own
    (tmp_path / "secret").write_bytes(b"x")
    (evil / "snapshots" / "0123" / "config.json").symlink_to("../../blobs/secret")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        read_member(evil / "snapshots" / "0123", "config.json", CheckpointError)
