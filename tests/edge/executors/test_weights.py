"""Where the weights lie: the same bytes mapped and copied, and an honest count of huge pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.config.presets import preset
from edge.errors import BundleError, NativeError
from edge.executors.native import library as native
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.weights import CopiedWeights, HugePageFile, MappedWeights, WeightMemory, open_weights
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.scheme import QuantScheme
from edge.system.huge_pages import huge_page_bytes

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of huge pages")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with 12 MB of weights."""
    path = tmp_path_factory.mktemp("weights") / "bundle"
    config = replace(
        preset("minicpm4-0.5b"),
        **{"num_hidden_layers": 20, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 2000},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_ids": (2,)},
    )
    convert(RandomCheckpoint(config, QuantScheme("int4", 32)), path)
    return path


def content(memory: WeightMemory, bundle: Bundle) -> dict[str, bytes]:
    return {name: ctypes.string_at(memory.address(name), info.bytes) for name, info in bundle.tensors.items()}


@pytest.mark.parametrize("place", [MappedWeights, CopiedWeights, open_weights])
def test_the_bytes_are_those_of_the_file(path, place):
    bundle = Bundle.open(path)
    memory = place(bundle)
    assert content(memory, bundle) == {name: bundle.data(name).tobytes() for name in bundle.tensors}
    assert 10 * MB < memory.bytes <= bundle.weights_file.stat().st_size
    if memory.huge_bytes is not None:
        assert 0 <= memory.huge_bytes <= memory.bytes


@linux
@pytest.mark.parametrize(("share", "mapped"), [(None, False), (0, False), (0.89, False), (0.91, True)])
def test_weights_are_mapped_when_the_system_says_that_it_is_fast(path, monkeypatch, share, mapped):
    """share: of the asked bytes in huge pages, by the system's answer."""
    bundle = Bundle.open(path)
    memory = MappedWeights(bundle)
    if native.library().edge_mapping_prefault(memory.address("model.norm.weight"), 64) == native.UNSUPPORTED:
        pytest.skip("this kernel does not read mapped files ahead")
    told = None if share is None else int(share * memory.bytes)
    monkeypatch.setattr("edge.executors.weights.huge_page_bytes", lambda start, size: told)
    assert open_weights(bundle).mapped == mapped


def test_weights_are_mapped_when_that_is_fast_or_wanted(path):
    mapped = MappedWeights(Bundle.open(path))
    fast = mapped.read_in_huge_pages()
    assert fast == ((mapped.huge_bytes or 0) >= 0.9 * mapped.bytes)
    assert open_weights(Bundle.open(path)).mapped == fast
    assert open_weights(Bundle.open(path), mmap=True).mapped
    assert not open_weights(Bundle.open(path), mmap=False).mapped


def test_the_executor_tells(path):
    executor = open_executor(Bundle.open(path), RunOptions(context=64, mmap=True))
    assert executor.weights.mapped and executor.weights.bytes > 10 * MB
    executor.close()
    with pytest.raises(NativeError, match="closed"):
        _ = executor.weights


@linux
def test_small_pages_are_not_counted():
    with mmap.mmap(-1, 8 * MB) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[:] = bytes(8 * MB)
        view = np.frombuffer(memory, np.uint8)
        assert huge_page_bytes(view.ctypes.data, 8 * MB) == 0
        del view


@linux
def test_a_region_of_huge_pages_is_counted():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.is_file() or "[never]" in enabled.read_text():
        pytest.skip("huge pages are switched off in this system")
    region = ctypes.c_void_p()
    native.check(native.library().edge_region_create(16 * MB, ctypes.byref(region)))
    assert huge_page_bytes(region.value, 16 * MB) == 0  # nothing is there yet
    ctypes.memset(region, 1, 16 * MB)
    assert huge_page_bytes(region.value, 16 * MB) >= 2 * MB  # the system may be short of them
    native.library().edge_region_destroy(region, 16 * MB)


@linux
def test_a_file_that_became_shorter_is_an_error_and_no_signal(path, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in path.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    bundle = Bundle.open(tmp_path / "copy")
    memory = MappedWeights(bundle)
    with bundle.weights_file.open("r+b") as file:
        file.truncate(4096)
    if native.library().edge_mapping_prefault(memory.address("model.norm.weight"), 64) == native.UNSUPPORTED:
        pytest.skip("this kernel does not read mapped files ahead")
    with pytest.raises(BundleError, match="became shorter while it was read"):
        memory.read_in_huge_pages()
    with pytest.raises(BundleError, match="became shorter while it was read"):
        CopiedWeights(bundle)


def test_a_system_may_read_less_than_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: whole(file, [parts[0][:777]], at))
    copy = HugePageFile(tmp_path / "file", 9_000)
    found = np.ctypeslib.as_array((ctypes.c_uint8 * 9_000).from_address(copy.start))
    np.testing.assert_array_equal(found, data[:9_000])
