"""The facts of `edge inspect`, over a tiny bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge.apps.inspect import _rope, _scales
from edge.config import RopeConfig
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.measure.inspection import _tokenizer_kind, inspect_model


@pytest.fixture
def bundle(tiny_config, array_checkpoint, tmp_path) -> Bundle:
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.tokenizer_files = {}
    convert(checkpoint, tmp_path / "bundle", quantize="int8")
    return Bundle.open(tmp_path / "bundle")


def test_groups(bundle):
    """In the order of the network, norms last, and every tensor in one of them."""
    found = inspect_model(bundle)
    parts = [group.part for group in found.groups]
    assert parts[0].startswith("embedding") and parts[-1] == "norms" and len(parts) == len(set(parts))
    assert sum(group.count for group in found.groups) == len(bundle.tensors)
    assert sum(group.parameters for group in found.groups) == found.parameters
    norms, down = found.groups[-1], next(group for group in found.groups if group.part == "MLP down")
    assert (norms.count, norms.parameters, norms.exact) == (5, 5 * 40, True)
    assert (down.count, down.parameters, down.exact) == (2, 2 * 40 * 100, False)
    # 48 x 128 codes, and 4 float16 scales per row
    assert down.bytes == 2 * (48 * 128 + 48 * 4 * 2)
    assert down.bits_per_weight == 8 * down.bytes / 8000
    assert set(found.rounded) == {group for group in found.groups if str(group.scheme) == "int8-g32"}


def test_memory_and_its_document(bundle):
    found = inspect_model(bundle, context=100, kv_type="int8")
    plan = found.to_json()["memory"]
    assert plan["context"] == 100 and plan["kv_type"] == "int8"
    assert plan["kv_bytes_per_token"] == 2 * 2 * 2 * (16 + 4)
    assert plan["kv_cache_bytes"] == 100 * plan["kv_bytes_per_token"]
    parts = [plan[f"{name}_bytes"] for name in ("weights", "kv_cache", "workspace")]
    assert plan["total_bytes"] == sum(parts) and min(parts) > 0
    assert inspect_model(bundle).memory.context == 512
    exported = SimpleNamespace(
        **{name: getattr(bundle, name) for name in ("config", "tensors", "source", "path", "content_hash")},
        **{name: getattr(bundle, name) for name in ("chat_template", "tokenizer_files", "generation_config")},
        **{"target": "onnx", "flavour": "portable", "kv_type": "float32", "context": 32},
    )
    fixed = inspect_model(exported, kv_type="int8")
    assert (fixed.kv_type, fixed.memory.context) == ("float32", 32)
    assert (fixed.activations, found.to_json()["activations"]) == ("int8", "int8")
    assert inspect_model(bundle.with_activations("float32")).activations == "float32"
    assert inspect_model(exported, context=8).memory.context == 8


def test_tokenizers_by_their_files():
    def kind(**document):
        return _tokenizer_kind({"tokenizer.json": json.dumps(document).encode(), "tokenizer.model": b""})

    bpe = {"type": "BPE"}
    assert kind(model=bpe) == "BPE"
    for name in ("pre_tokenizer", "decoder"):
        assert kind(model=bpe, **{name: {"type": "ByteLevel"}}) == "byte-level BPE"
    assert kind(model=[]) == kind(model={}) == "unknown kind"
    assert _tokenizer_kind({"tokenizer.model": b""}) == "SentencePiece"
    assert _tokenizer_kind({}) is None


def test_the_words_of_a_network(tiny_config):
    scaled = replace(tiny_config, scale_emb=12, scale_depth=None, dim_model_base=256)
    assert _scales(SimpleNamespace(config=scaled)) == " (scale_emb 12, dim_model_base 256)"
    plain = replace(tiny_config, scale_emb=None, scale_depth=None, dim_model_base=None)
    assert _scales(SimpleNamespace(config=plain)) == ""
    assert _rope(RopeConfig(theta=1e6)) == "RoPE default, theta 1e+06"
    assert _rope(RopeConfig("linear", 1e4, factor=2.5)) == "RoPE linear, theta 10000, factor 2.5"
