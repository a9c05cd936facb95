"""Copied weights leave memory while nobody asks, and come back: the same bytes, the same answers."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.config.presets import preset
from edge.errors import NativeError
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Rests
from edge.executors.weights import HugePageFile
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.scheme import QuantScheme
from tests.steps import forward

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can move memory to an address")
MB = 1 << 20
SIZE = 32 * MB + 12_345  # no whole pages


def private_bytes() -> int:
    """Of this process: what no file gives back."""
    return int(sum(part.anonymous for part in psutil.Process().memory_maps(grouped=False)))


def has(copy: HugePageFile, data: bytes) -> bool:
    """Without a second copy that would count as memory of the test."""
    found = np.ctypeslib.as_array((ctypes.c_uint8 * len(data)).from_address(copy.start))
    return bool((found == np.frombuffer(data, np.uint8)).all())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE + 5000, np.uint8).tobytes())
    return path


def test_a_copy_rests_and_comes_back_at_its_address(file: Path) -> None:
    data = file.read_bytes()[:SIZE]
    copy = HugePageFile(file, SIZE)
    awake, start = private_bytes(), copy.start
    for _ in range(2):
        copy.rest()
        assert copy.rests and copy.start == start and has(copy, data)
        assert private_bytes() < awake - SIZE // 2
        fresh = copy.copied()
        assert has(copy, data)  # while the new one is there
        copy.wake(fresh)
        assert not copy.rests and has(copy, data)
        assert private_bytes() > awake - SIZE // 2
    del copy, fresh
    assert private_bytes() < awake - SIZE // 2


def test_what_was_read_stays_if_the_file_is_written_to(file: Path) -> None:
    data = file.read_bytes()[:SIZE]
    copy = HugePageFile(file, SIZE)
    with file.open("r+b") as changed:
        changed.write(b"other")
    os.utime(file, ns=(1, 1))
    copy.rest()
    assert not copy.rests and has(copy, data)


def test_a_file_that_was_replaced_is_still_the_old_one(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()[:SIZE]
    copy = HugePageFile(file, SIZE)
    (tmp_path / "other").write_bytes(b"other" * SIZE)
    (tmp_path / "other").replace(file)
    copy.rest()
    assert copy.rests and has(copy, data)
    copy.wake(copy.copied())
    assert has(copy, data)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """12 MB of weights."""
    path = tmp_path_factory.mktemp("weights") / "bundle"
    config = replace(
        preset("minicpm4-0.5b"),
        **{"num_hidden_layers": 20, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 2000},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_ids": (2,)},
    )
    convert(RandomCheckpoint(config, QuantScheme("int4", 32)), path)
    return Bundle.open(path)


def logits(executor: NativeExecutor) -> bytes:
    step = forward(executor, executor.new_cache(), np.arange(3, 40), logits="all")
    assert step.logits is not None
    return step.logits.tobytes()


@pytest.mark.parametrize("mmap", [True, False])
def test_an_executor_answers_while_its_weights_rest(bundle: Bundle, mmap: bool) -> None:
    """Mapped weights have nothing to give back."""
    executor = open_executor(bundle, RunOptions(context=64, mmap=mmap))
    assert isinstance(executor, NativeExecutor) and isinstance(executor, Rests)
    before, awake = logits(executor), private_bytes()
    for _ in range(2):
        executor.rest()
        executor.rest()
        if not mmap:
            assert private_bytes() < awake - executor.weights.bytes // 2
        assert logits(executor) == before
        executor.wait_for_weights()
        assert logits(executor) == before
        assert private_bytes() > awake - executor.weights.bytes // 2
    executor.close()


def test_a_copy_that_finds_no_memory_leaves_the_file_in_its_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = open_executor(bundle, RunOptions(context=64, mmap=False))
    before = logits(executor)
    executor.rest()
    tried = []

    def fails(self: HugePageFile) -> None:
        tried.append(threading.get_ident())
        raise NativeError("no memory")

    monkeypatch.setattr(HugePageFile, "copied", fails)
    assert logits(executor) == before
    executor.wait_for_weights()
    assert logits(executor) == before and len(tried) == 1
    monkeypatch.undo()
    executor.rest()
    assert logits(executor) == before
    executor.wait_for_weights()
    assert logits(executor) == before
    executor.close()
