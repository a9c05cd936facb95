"""KV caches in files: a session goes on where another ended; every other file is refused with its reason."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.engine.session import Session
from edge.errors import ContextError, EdgeError
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.formats.kv_file import MAGIC, read_cache, write_cache
from edge.hub.convert import convert

PROMPT = [5, 9, 33, 2, 61, 17, 8, 8, 70, 4, 12, 25, 41, 3, 66, 1, 30, 19, 52, 7]


@pytest.fixture
def make_bundle(tiny_config, array_checkpoint, tmp_path: Path) -> Callable[[int], Bundle]:
    """A tiny network with the random weights of a seed."""
    sparse = SparseConfig(init_blocks=1, window_size=64, topk=2, dense_len=128)
    config = replace(tiny_config, max_position_embeddings=320, sparse=sparse)

    def make(seed: int) -> Bundle:
        convert(array_checkpoint(config, seed=seed), tmp_path / f"bundle-{seed}", quantize="int8")
        return Bundle.open(tmp_path / f"bundle-{seed}")

    return make


@pytest.fixture
def new_executor(make_bundle) -> Callable[..., NativeExecutor]:
    bundle = make_bundle(0)

    def make(**options) -> NativeExecutor:
        return open_executor(
            bundle, RunOptions(threads=1, **{"context": 300, "attention": "dense", **options})
        )

    return make


@pytest.fixture
def stored(new_executor, tmp_path: Path) -> Path:
    session = Session(new_executor())
    session.prefill(PROMPT)
    size = session.save(tmp_path / "cache.kv")
    assert size == (tmp_path / "cache.kv").stat().st_size
    return tmp_path / "cache.kv"


@pytest.mark.parametrize("kv_type", ["float16", "float32", "int8", "int4"])
@pytest.mark.parametrize("length", [1, 20, 257])
def test_a_session_goes_on_from_the_file(new_executor, tmp_path, kv_type, length):
    tokens = [PROMPT[i % len(PROMPT)] for i in range(length)]
    first = Session(new_executor(kv_type=kv_type))
    first.prefill(tokens)
    first.save(tmp_path / "cache.kv")
    second = Session(new_executor(kv_type=kv_type))
    second.load(tmp_path / "cache.kv")
    assert second.tokens.tolist() == tokens
    np.testing.assert_array_equal(second.step(11), first.step(11))
    np.testing.assert_array_equal(second.step(12), first.step(12))
    assert second.tokens.tolist() == [*tokens, 11, 12]
    assert second.computed_tokens == 2


def test_sparse_attention_selects_from_the_restored_rows(new_executor, tmp_path):
    tokens = np.arange(270) % 77
    first = Session(new_executor(attention="sparse"))
    first.prefill(tokens)
    first.save(tmp_path / "cache.kv")
    second = Session(new_executor(attention="sparse"))
    second.prefill(tokens[::-1])
    second.load(tmp_path / "cache.kv")
    np.testing.assert_array_equal(second.step(11), first.step(11))


def test_what_was_in_the_cache_before_is_gone(new_executor, stored):
    session = Session(new_executor())
    session.prefill(PROMPT[::-1])
    session.load(stored)
    fresh = Session(new_executor())
    fresh.prefill(PROMPT)
    np.testing.assert_array_equal(session.step(3), fresh.step(3))


def test_an_empty_session_has_a_file_too(new_executor, tmp_path):
    Session(new_executor()).save(tmp_path / "cache.kv")
    session = Session(new_executor())
    session.load(tmp_path / "cache.kv")
    assert session.length == 0


def refusal(session: Session, path: Path) -> str:
    session.prefill(PROMPT[:4])
    with pytest.raises(EdgeError) as error:
        session.load(path)
    assert session.tokens.tolist() == PROMPT[:4]  # nothing has changed
    return str(error.value)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"kv_type": "float32"}, "--kv"),
        ({"activations": "float32"}, "--activations"),
        ({"attention": "sparse"}, "--attention"),
    ],
)
def test_other_settings_are_refused(new_executor, stored, options, reason):
    assert reason in refusal(Session(new_executor(**options)), stored)


def test_another_model_is_refused(make_bundle, stored):
    executor = open_executor(make_bundle(1), RunOptions(threads=1, context=300, attention="dense"))
    assert "by another model" in refusal(Session(executor), stored)


def test_a_shorter_context_is_refused(new_executor, stored):
    session = Session(new_executor(context=8))
    with pytest.raises(ContextError, match="holds 20 tokens and the context 8"):
        session.load(stored)


@pytest.mark.parametrize("at", [0, 15])
def test_a_foreign_file_is_refused(new_executor, stored, at):
    data = bytearray(stored.read_bytes())
    data[at] ^= 1
    stored.write_bytes(data)
    assert "is not a KV cache" in refusal(Session(new_executor()), stored)


def test_a_newer_format_is_refused(new_executor, stored):
    data = stored.read_bytes()
    assert data.count(b'"version": 1') == 1
    stored.write_bytes(data.replace(b'"version": 1', b'"version": 2'))
    assert "has format version 2 and this program reads 1" in refusal(Session(new_executor()), stored)


@pytest.mark.parametrize("place", [16, 23, 30, -1, -30000])
def test_a_changed_byte_is_found(new_executor, stored, place):
    data = bytearray(stored.read_bytes())
    data[place] ^= 0x40
    stored.write_bytes(data)
    assert "delete it" in refusal(Session(new_executor()), stored)


@pytest.mark.parametrize("token", [0, 7, len(PROMPT) - 1])
@pytest.mark.parametrize("byte", [0, 3])
def test_a_changed_token_is_found(new_executor, stored, token, byte):
    """The tokens stand behind the header, from a multiple of 64 bytes on; each of their bytes counts."""
    data = bytearray(stored.read_bytes())
    start = -(-(24 + int.from_bytes(data[16:24], "little")) // 64) * 64
    assert np.frombuffer(data, "<i4", len(PROMPT), start).tolist() == PROMPT
    data[start + 4 * token + byte] ^= 1
    stored.write_bytes(data)
    assert "its checksum does not match" in refusal(Session(new_executor()), stored)


@pytest.mark.parametrize("shared", [0, 7, len(PROMPT) - 1, len(PROMPT)])
def test_a_loaded_cache_goes_on_differently(new_executor, stored, shared):
    """Tokens that the file does not have take the place of those it has."""
    session = Session(new_executor())
    session.load(stored)
    changed = [*PROMPT[:shared], 76, 75, 74]
    logits = session.prefill(changed)
    fresh = Session(new_executor())
    np.testing.assert_array_equal(logits, fresh.prefill(changed))
    assert session.tokens.tolist() == changed
    assert (session.reused_tokens, session.computed_tokens) == (shared, 3)
    np.testing.assert_array_equal(session.step(11), fresh.step(11))


def test_a_full_cache_is_stored_and_loaded(new_executor, tmp_path):
    tokens = np.arange(300) % 77
    first = Session(new_executor())
    first.prefill(tokens)
    assert first.length == first.context == 300
    first.save(tmp_path / "cache.kv")
    second = Session(new_executor())
    second.load(tmp_path / "cache.kv")
    assert second.tokens.tolist() == tokens.tolist()
    with pytest.raises(ContextError):
        second.step(1)
    np.testing.assert_array_equal(second.prefill(tokens), first.prefill(tokens))
    with pytest.raises(ContextError, match="holds 300 tokens and the context 299"):
        Session(new_executor(context=299)).load(tmp_path / "cache.kv")


@pytest.mark.parametrize("length", [0, 5, 23, 100, -1])
def test_a_cut_file_is_refused(new_executor, stored, length):
    stored.write_bytes(stored.read_bytes()[:length])
    assert "is damaged" in refusal(Session(new_executor()), stored)


def test_a_missing_file_and_a_folder_that_is_not_there(new_executor, tmp_path):
    session = Session(new_executor())
    with pytest.raises(EdgeError, match="Cannot read"):
        session.load(tmp_path / "none.kv")
    with pytest.raises(EdgeError, match="Cannot write"):
        session.save(tmp_path / "none" / "cache.kv")


def test_a_failed_write_keeps_the_old_file(new_executor, stored, monkeypatch):
    before = stored.read_bytes()
    monkeypatch.setattr("os.fsync", _full)
    session = Session(new_executor())
    session.prefill(PROMPT[:3])
    with pytest.raises(EdgeError, match="disk is full"):
        session.save(stored)
    assert stored.read_bytes() == before
    assert not list(stored.parent.glob(".*"))


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model", "by another model"),
        ("layout", "by another version of this program"),
        ("kv_type", "with another --kv:"),
        ("activations", "with another --activations:"),
        ("rope", "with another --context, --rope-regime or --rope-override:"),
        ("attention", "with another --attention:"),
        ("colour", "with another colour:"),
    ],
)
def test_what_differs_is_named_as_its_user_knows_it(tmp_path: Path, name: str, reason: str):
    tokens, memory = np.arange(3, dtype=np.int32), np.arange(5, dtype=np.uint8)
    identity = {"same": "x", name: "old"}
    write_cache(tmp_path / "c", identity, tokens, [memory])
    for other in ({"same": "x", name: "new"}, {**identity, name: "new"}):
        with pytest.raises(EdgeError, match=reason):
            read_cache(tmp_path / "c", other)
    found = read_cache(tmp_path / "c", identity)
    assert found.tokens.tolist() == [0, 1, 2] and found.memory.tolist() == [0, 1, 2, 3, 4]


def test_a_header_has_at_most_64_kib(tmp_path: Path):
    for length, says in ((1 << 16, "not valid JSON"), ((1 << 16) + 1, "its header is cut off")):
        (tmp_path / "c").write_bytes(struct.pack("<16sQ", MAGIC, length) + bytes(1 << 17))
        with pytest.raises(EdgeError, match=says):
            read_cache(tmp_path / "c", {})


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_its_owner_can_read_a_cache(tmp_path: Path):
    before = os.umask(0)
    try:
        write_cache(tmp_path / "c", {}, np.zeros(1, np.int32), [np.zeros(1, np.uint8)])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600
