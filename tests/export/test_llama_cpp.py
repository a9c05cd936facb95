"""Exported GGUF files in llama.cpp itself: the same text, MiniCPM's scales and LongRoPE as it computes them.

`make test-all` builds llama.cpp's bindings once; without them these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge.config import RopeConfig
from edge.config.huggingface import config_from_hf
from edge.errors import ArtifactError
from edge.export.artifact import export_model
from edge.export.check import exact_executor
from edge.export.options import ExportOptions
from edge.export.source import Source, open_source
from edge.export.targets.gguf.check import run_llama_cpp
from edge.export.targets.gguf.target import TARGET as GGUF
from edge.hub.resolve import open_model
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme
from edge.text.tokenizer import load_tokenizer
from tests.family_networks import CASES, theirs
from tests.steps import forward

from .tiny import LONGROPE, llama_config, make_source, minicpm_config

pytestmark = pytest.mark.slow
QUESTION = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
NEAR_TIE = 0.5
"""Logits nearer than this may change places: llama.cpp rounds activations to 8 bits."""


@pytest.fixture(scope="module", autouse=True)
def llama_cpp_runs(smollm2_gguf: Path) -> None:
    """Skip where llama.cpp can't even run the file that the default model comes as."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make test-all` builds it")
    try:
        run_llama_cpp(smollm2_gguf, [1, 2, 3])
    except ArtifactError as error:
        pytest.skip(str(error))


def prompt_of(source: Source) -> list[int]:
    return load_tokenizer(source.tokenizer_files, source.config).encode(QUESTION, parse_special=True)


def test_the_default_model_writes_what_its_own_file_writes(smollm2_gguf: Path, tmp_path: Path):
    source = Source(open_model(smollm2_gguf))
    artifact = export_model(source, ExportOptions("gguf"), tmp_path / "out")
    prompt = prompt_of(source)
    ours, theirs = (run_llama_cpp(path, prompt, greedy=48) for path in (artifact.model, smollm2_gguf))
    assert list(ours.tokens) == list(theirs.tokens)
    np.testing.assert_array_equal(ours.logits, theirs.logits)


def test_int4_writes_the_text_of_the_native_executor(smollm2_gguf: Path, tmp_path: Path):
    """Token for token, up to a near tie of the exact logits."""
    options = ExportOptions("gguf", quantize="int4-g32")
    source = open_source(str(smollm2_gguf), options)
    artifact = export_model(source, options, tmp_path / "out")
    prompt = prompt_of(source)
    written = run_llama_cpp(artifact.model, prompt, greedy=48).tokens
    executor = exact_executor(source.bundle, 512)
    cache, given, same = executor.new_cache(), prompt, 0
    for token in written:
        logits = forward(executor, cache, given).logits
        assert logits is not None
        best = int(logits[-1].argmax())
        if best != token:
            assert logits[-1][best] - logits[-1][token] < NEAR_TIE
        same += best == token
        given = [int(token)]
    executor.close()
    assert same >= 0.9 * len(written)


@pytest.mark.parametrize(
    ("rope", "context"),
    [(LONGROPE, 64), (LONGROPE, 256), (RopeConfig(type="linear", factor=4.0), 256)],
    ids=["short", "long", "linear"],
)
def test_minicpm_is_what_llama_cpp_computes(tmp_path: Path, rope: RopeConfig, context: int):
    """muP scales, both LongRoPE lists and the factor on cos and sin, in float16 weights."""
    source = make_source(tmp_path, minicpm_config(rope=rope), QuantScheme("f16"))
    artifact = export_model(source, ExportOptions("gguf", context=context), tmp_path / "out")
    check_logits(source, artifact.model, context, 2e-2)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64),
        RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.5),
        RopeConfig(type="llama3", factor=8.0, original_max_position_embeddings=64, beta_fast=4.0),
    ],
    ids=["yarn", "yarn-factor", "llama3"],
)
def test_llama_is_what_llama_cpp_computes(tmp_path: Path, rope: RopeConfig):
    source = make_source(tmp_path, llama_config(rope=rope), QuantScheme("f16"))
    artifact = export_model(source, ExportOptions("gguf"), tmp_path / "out")
    check_logits(source, artifact.model, 256, 2e-2)


@pytest.mark.parametrize(
    ("scheme", "asked", "atol"),
    [
        (QuantScheme("ternary", 256), "tq2_0", 0.1),
        (QuantScheme("ternary", 256), "tq1_0", 0.1),
        (QuantScheme("ternary", 128), "q4_0", 0.1),
        (QuantScheme("int8", 32), "q8_0", 0.1),
        (QuantScheme("int4", 32, minimum=True), "q4_1", 0.1),
    ],
    ids=["tq2_0", "tq1_0", "q4_0", "q8_0", "q4_1"],
)
def test_types_are_read_as_they_were_written(tmp_path: Path, scheme: QuantScheme, asked: str, atol: float):
    source = make_source(tmp_path, minicpm_config(), scheme, head=QuantScheme("f16"))
    artifact = export_model(source, ExportOptions("gguf", gguf_type=asked), tmp_path / "out")
    check_logits(source, artifact.model, 64, atol)


FAMILIES = ["mistral", "llama-3.2", "qwen2", "qwen3", "smollm3", "phi3-short", "phi3-long"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_what_llama_cpp_computes(tmp_path: Path, name: str):
    """Through a GGUF with float16 weights: biases, norms, layers without RoPE, fused and partial heads.

    The truth is the network in PyTorch, which equals the family's own class.
    """
    config = config_from_hf(theirs(CASES[name]).config.to_dict())
    source = make_source(tmp_path, config, QuantScheme("f16"))
    written = GGUF.write(source, ExportOptions("gguf"), tmp_path, None)
    tokens = [int(token) for token in np.random.default_rng(2).integers(3, 258, 308)]
    run = run_llama_cpp(tmp_path / written.model, tokens[:300], tokens[300:], context=config.longest_context)
    truth = reference_from_bundle(source.bundle)(torch.tensor(tokens)).numpy()
    error = np.abs(run.logits - truth[299:]).max() / truth.std()
    assert error < 2e-2


def check_logits(source: Source, model: Path, context: int, atol: float) -> None:
    """Logits within atol times the spread of the exact ones, after a prompt of 40 tokens and 8 more."""
    tokens = [int(token) for token in np.random.default_rng(2).integers(3, 258, 48)]
    # llama.cpp's context decides which LongRoPE list it takes, as ours does.
    run = run_llama_cpp(model, tokens[:40], tokens[40:], context=max(context, 64))
    executor = exact_executor(source.bundle, context)
    truth = forward(executor, executor.new_cache(), np.array(tokens), logits="all").logits
    executor.close()
    assert truth is not None
    error = np.abs(run.logits - truth[39:]).max() / truth.std()
    assert error < atol
