"""Ternary matrices in base 3, and the bundles that carry them: smaller, and the same bytes once unpacked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge
from edge.checkpoints.compact import write_compact
from edge.checkpoints.synthetic import RandomCheckpoint
from edge.errors import BundleError, EdgeError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.hub.resolve import open_model
from edge.hub.store import cached_models
from edge.quant.base3 import base3_bytes, pack_base3, unpack_base3
from edge.quant.packing import pack
from edge.quant.scheme import QuantizedMatrix, QuantScheme

SCHEMES = [QuantScheme("ternary", group) for group in (0, 32, 128, 256)]
SHAPES = [(16, 32), (1, 1), (17, 33), (40, 300), (48, 576), (3, 257)]


def ternary(scheme: QuantScheme, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(rows * 1000 + columns)
    codes = random.integers(0, 3, (rows, columns)).astype(np.uint8)
    scales = random.standard_normal((rows, scheme.groups(columns))).astype(np.float16)
    return pack(QuantizedMatrix(scheme, codes, scales), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_is_exact(scheme, shape):
    data = ternary(scheme, *shape)
    packed = pack_base3(data, scheme, *shape)
    assert packed.size == base3_bytes(scheme, *shape)
    assert np.array_equal(unpack_base3(packed, scheme, *shape), data)


def test_the_layout_by_hand():
    # One tile of one group: row 0 begins with the weights -1, 0, 1, 1 and -1 at columns 0, 4, 8, 12 and 1:
    # the four codes of the canonical layout's first byte, and the first one of its second.
    scheme = QuantScheme("ternary")
    codes = np.ones((16, 32), np.uint8)
    codes[0, [0, 4, 8, 12, 1]] = 0, 1, 2, 2, 0
    scales = np.arange(1, 17, dtype=np.float16).reshape(16, 1)
    packed = pack_base3(pack(QuantizedMatrix(scheme, codes, scales), scheme), scheme, 16, 32)
    assert packed[0] == 0 + 1 * 3 + 2 * 9 + 2 * 27 + 0 * 81
    assert (packed[4:102] == 1 + 3 + 9 + 27 + 81).all()
    assert packed[102] == 1 + 3  # 512 codes: two are left
    assert np.array_equal(packed[103:135].view("<f2"), scales[:, 0])
    assert packed.size == 192 and not packed[135:].any()


def test_sizes():
    # 4096 x 4096 weights, five to a byte and a scale of 2 bytes for each group
    assert base3_bytes(QuantScheme("ternary"), 4096, 4096) == -(-(-(-(4096**2) // 5) + 2 * 4096) // 64) * 64
    group = QuantScheme("ternary", 128)
    assert base3_bytes(group, 4096, 4096) / group.packed_bytes(4096, 4096) == pytest.approx(
        1.725 / 2.125, 1e-4
    )


@pytest.mark.parametrize("value", [243, 255])
def test_a_damaged_byte_is_refused(value):
    scheme = QuantScheme("ternary", 32)
    packed = pack_base3(ternary(scheme, 17, 33), scheme, 17, 33)
    packed[7] = value
    with pytest.raises(BundleError, match="a byte above 242: it is damaged"):
        unpack_base3(packed, scheme, 17, 33)


def test_damaged_codes_and_sizes_are_refused():
    scheme = QuantScheme("ternary", 32)
    data = ternary(scheme, 17, 33)
    with pytest.raises(BundleError, match="takes 576 bytes, found 512"):
        unpack_base3(pack_base3(data, scheme, 17, 33)[:-64], scheme, 17, 33)
    data[0] |= 3  # no ternary code
    with pytest.raises(BundleError, match="other than 0, 1 and 2"):
        pack_base3(data, scheme, 17, 33)


@pytest.fixture
def ternary_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config) -> Bundle:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    config = replace(tiny_config, vocab_size=300, hidden_size=72)
    convert(RandomCheckpoint(config, QuantScheme("ternary", 128)), tmp_path / "plain")
    return Bundle.open(tmp_path / "plain")


def test_a_compact_bundle_opens_as_what_it_was(ternary_bundle, tmp_path):
    write_compact(ternary_bundle, tmp_path / "compact")
    manifest = json.loads((tmp_path / "compact" / "manifest.json").read_text())
    layouts = {entry["scheme"]["layout"] for entry in manifest["tensors"].values()}
    assert layouts == {"t3.n16k16.g128.v1", "i4.n16k8.g32.v1", "f32.row.v1"}

    opened = open_model(tmp_path / "compact")
    assert opened.path.parent == tmp_path / "cache" / "models"
    assert opened.manifest.tensors == ternary_bundle.manifest.tensors
    assert opened.content_hash == ternary_bundle.content_hash  # every file has the same bytes
    assert opened.manifest.source == ternary_bundle.manifest.source
    small = (tmp_path / "compact" / "weights.safetensors").stat().st_size
    assert small < ternary_bundle.weights_file.stat().st_size

    assert open_model(tmp_path / "compact").path == opened.path  # unpacked once
    assert len(cached_models()) == 1
    with edge.load(tmp_path / "compact", context=64) as model:
        found = model.complete("abc", max_new_tokens=3, temperature=0).tokens
    with edge.load(ternary_bundle.path, context=64) as model:
        assert model.complete("abc", max_new_tokens=3, temperature=0).tokens == found


def test_a_compact_bundle_does_not_run_as_it_is(ternary_bundle, tmp_path):
    write_compact(ternary_bundle, tmp_path / "compact")
    with pytest.raises(BundleError, match="must be unpacked before it runs"):
        Bundle.open(tmp_path / "compact")
    with pytest.raises(EdgeError, match="cannot be quantized again"):
        open_model(tmp_path / "compact", quantize="int4")


def test_without_ternary_matrices_there_is_no_compact_form(tmp_path, ternary_bundle):
    convert(RandomCheckpoint(ternary_bundle.config, QuantScheme("int4", 32)), tmp_path / "int4")
    with pytest.raises(BundleError, match="no ternary matrices"):
        write_compact(Bundle.open(tmp_path / "int4"), tmp_path / "compact")
    assert not (tmp_path / "compact").exists()
