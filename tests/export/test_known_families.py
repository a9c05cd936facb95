"""Every family that is declared computes what its own class in transformers does, and is read and written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config.gguf import config_to_gguf
from edge.config.huggingface import config_from_hf
from edge.config.rope import rope_parameters, rope_tables
from edge.config.rope_entry import override_rope
from edge.config.tensors import beyond_llama
from edge.errors import ContextError, ExportError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets.gguf.target import TARGET as GGUF
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.model.network.rope import RotaryEmbedding
from edge.model.weights.checkpoint import load_decoder, reference_from_bundle, save_huggingface
from edge.quant.scheme import QuantScheme
from tests.family_networks import CASES, CONTEXT, EXACT, LENGTH, TOKENS, largest_error, theirs
from tests.steps import forward

from .tiny import byte_tokenizer_files, make_source


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name, data in byte_tokenizer_files().items():
        (folder / name).write_bytes(data)
    return folder


def run(executor: Executor) -> torch.Tensor:
    """Logits of all positions, in two steps."""
    cache, parts = executor.new_cache(), TOKENS.numpy().astype(np.int32)
    steps = [forward(executor, cache, part, logits="all").logits for part in (parts[:200], parts[200:])]
    return torch.from_numpy(np.concatenate(steps))


@pytest.mark.parametrize("name", CASES)
def test_the_network_is_that_of_the_familys_own_class(tmp_path: Path, name: str):
    model = theirs(CASES[name])
    folder = save(model, tmp_path / "theirs")
    decoder = load_decoder(folder)
    truth = model(TOKENS[None]).logits[0]
    assert largest_error(decoder(TOKENS), truth) < EXACT
    # Written again, by their own names, it is read by them and by us as the same network.
    again = tmp_path / "ours"
    save_huggingface(again, decoder.config, decoder.state_dict(), tokenizer_files=byte_tokenizer_files())
    read = HuggingFaceCheckpoint(again)
    assert read.config == decoder.config
    for tensor, values in decoder.state_dict().items():
        np.testing.assert_array_equal(read.read_float32(tensor), values.numpy(), err_msg=tensor)
    back = type(model).from_pretrained(again).eval()
    assert {*back.state_dict()} == {*model.state_dict()}
    with torch.no_grad():
        torch.testing.assert_close(back(TOKENS[None]).logits[0], truth, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama-3.2", "mistral-window", "qwen2", "qwen3", "smollm3", "phi3-long"])
def test_gguf_and_back(tmp_path: Path, name: str):
    config = config_from_hf(theirs(CASES[name]).config.to_dict())
    source = make_source(tmp_path, config, QuantScheme("int8", 32))
    written = GGUF.write(source, ExportOptions("gguf"), tmp_path, None)
    found = GGUFCheckpoint(tmp_path / written.model)
    # Mistral is a Llama there; what a window leaves of the context is all of it.
    assert found.config == replace(
        config,
        model_type="llama" if config.model_type == "mistral" else config.model_type,
        max_position_embeddings=config.longest_context,
        sliding_window=None,
        sliding_layers=(),
        rope=found.config.rope,
        eos_token_ids=found.config.eos_token_ids,
    )
    length = config.longest_context
    for ours, theirs_ in zip(
        rope_parameters(config.rope, config.head_dim, length, config.max_position_embeddings),
        rope_parameters(found.config.rope, config.head_dim, length, length),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs_, rtol=1e-6)
    for tensor in source.tensors:
        np.testing.assert_array_equal(found.read_float32(tensor), source.floats(tensor), err_msg=tensor)


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-upper", "smollm3-some"])
def test_a_window_limits_the_context(tmp_path: Path, name: str):
    """Up to it nothing differs; beyond it there is no answer, wherever a context is asked for."""
    model = theirs(CASES[name])
    folder = save(model, tmp_path / "model")
    decoder = load_decoder(folder)
    assert (decoder.config.longest_context, decoder.context) == (LENGTH, LENGTH)
    assert largest_error(decoder(TOKENS), model(TOKENS[None]).logits[0]) < EXACT
    longer = torch.arange(LENGTH + 1) % 264
    words = rf"{LENGTH + 1} tokens is beyond the model's sliding_window of {LENGTH}"
    with pytest.raises(ContextError, match=words):
        decoder(longer)
    convert(HuggingFaceCheckpoint(folder), tmp_path / "bundle", quantize="f16")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.config == decoder.config
    assert open_executor(bundle, RunOptions("torch")).context == LENGTH
    with pytest.raises(ContextError, match=words):
        open_executor(bundle, RunOptions("torch", context=LENGTH + 1))
    source = Source(bundle)
    assert source.context(ExportOptions("onnx")) == LENGTH
    with pytest.raises(ContextError, match=words):
        source.context(ExportOptions("onnx", context=LENGTH + 1))
    with pytest.raises(ContextError, match=words):  # no override of RoPE makes the window longer
        override_rope(bundle.config, {"max_position_embeddings": 4096}).check_context(LENGTH + 1)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "smollm3", "phi3-long"])
def test_a_bundle_runs_with_torch(tmp_path: Path, name: str):
    """Random weights of float16, through the bundle's manifest."""
    config = config_from_hf(theirs(CASES[name]).config.to_dict())
    source = make_source(tmp_path, config, QuantScheme("f16"))
    assert source.bundle.config == config
    found = run(open_executor(source.bundle, RunOptions("torch")))
    assert largest_error(found, reference_from_bundle(source.bundle)(TOKENS)) < EXACT


def test_partial_rotary_embedding_is_refused_by_name_where_it_is_not_computed():
    config = config_from_hf(theirs(CASES["phi3-partial"]).config.to_dict())
    assert beyond_llama(config) == ("partial rotary embedding",)
    assert beyond_llama(config_from_hf(theirs(CASES["phi3"]).config.to_dict())) == ()


@pytest.mark.parametrize("model_type", ["qwen2", "phi3"])
def test_what_llama_cpp_cannot_open_is_not_written(model_type: str):
    config = replace(config_from_hf(theirs(CASES["qwen3"]).config.to_dict()), model_type=model_type)
    with pytest.raises(ExportError, match=r"head_dim is 64\), so this model can't become a GGUF"):
        config_to_gguf(config)
    assert config_to_gguf(replace(config, head_dim=32))[f"{model_type}.attention.key_length"] == 32


@pytest.mark.parametrize("name", ["phi3-partial", "phi3-short", "phi3-long", "llama-3.2"])
def test_tables_of_cosines_and_sines(name: str):
    """The runtime's equal the reference's; pairs that are not rotated have 1 and 0 whatever the factor."""
    config = config_from_hf(theirs(CASES[name]).config.to_dict())
    frequencies, scale = rope_parameters(config.rope, config.head_dim, CONTEXT, CONTEXT)
    tables = rope_tables(np.arange(LENGTH, dtype=np.float32), frequencies, scale)
    for table, wanted in zip(tables, RotaryEmbedding(config, CONTEXT)(torch.arange(LENGTH)), strict=True):
        np.testing.assert_allclose(table, wanted[0].numpy(), atol=2e-4)
    turned = (config.rope.rotary_dim or config.head_dim) // 2
    assert (frequencies[:turned] > 0).all() and (turned < config.head_dim // 2) == (name != "llama-3.2")
    assert (tables[0][:, turned:] == 1).all() and not tables[1][:, turned:].any()
    assert (scale > 1) == (name == "phi3-long")
    np.testing.assert_allclose(tables[0][0, :turned], scale, rtol=1e-6)
