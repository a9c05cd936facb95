"""What the ExecuTorch target does to weights and tokenizers before anything is lowered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.errors import ArtifactError, ExportError
from edge.executors.executorch.executor import ExecuTorchExecutor
from edge.executors.options import RunOptions
from edge.export.targets.executorch.target import RUNTIME
from edge.export.targets.executorch.tokenizer import TOKENIZER, runner_tokenizer
from edge.export.targets.executorch.weights import PortableEmbedding, keeps_codes, portable_weights
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme
from edge.text.tokenizer.load import load_tokenizer
from tests.export.tiny import byte_tokenizer_files, llama_config

BFLOAT16_STEP = 2.0**-8  # largest relative rounding of a scale
DIGITS = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-min", "int4-row", "ternary-g128", "int8-row"])
def test_codes_pass_unchanged(name: str):
    scheme = QuantScheme.parse(name)
    weights = np.random.default_rng(0).standard_normal((48, 128), np.float32)
    weights[:, :32], weights[3, 32:64] = 0.25, 0
    matrix = quantize(weights, scheme)
    portable = portable_weights(matrix)
    assert keeps_codes(scheme, 128)
    assert portable.scales.min() > 0
    assert portable.codes.min() >= -(2 ** (portable.bits - 1))
    assert portable.codes.max() < 2 ** (portable.bits - 1)
    error = np.abs(portable.dequantize() - matrix.dequantize()).max()
    assert error <= BFLOAT16_STEP * 8 * np.abs(matrix.scales).max()
    assert (portable.offsets is None) == (scheme.kind != "int4")


def test_what_xnnpack_can_not_hold_becomes_int8_rows():
    weights = np.random.default_rng(0).standard_normal((16, 80), np.float32)
    for scheme in (QuantScheme("int8", 32), QuantScheme("int4", 64)):  # grouped int8; a ragged last group
        matrix = quantize(weights, scheme)
        portable = portable_weights(matrix)
        assert (portable.bits, portable.scales.shape) == (8, (16, 1))
        assert np.abs(portable.dequantize() - matrix.dequantize()).max() < np.abs(weights).max() / 127


@pytest.mark.parametrize("name", ["int4-g32-min", "int4-g64", "int8-g32", "ternary-g128"])
def test_embedding_rows_are_exact(name: str):
    import torch

    weights = np.random.default_rng(0).standard_normal((20, 144), np.float32)
    matrix = quantize(weights, QuantScheme.parse(name))
    found = PortableEmbedding(matrix)(torch.tensor([3, 19, 0])).numpy()
    np.testing.assert_allclose(found, matrix.dequantize()[[3, 19, 0]], atol=1e-6)


def source_of(files: dict[str, bytes], config: ModelConfig) -> SimpleNamespace:
    return SimpleNamespace(tokenizer_files=files, config=config)


def test_a_split_that_isolates_digits_becomes_digits():
    config, files = llama_config(), byte_tokenizer_files()
    assert runner_tokenizer(source_of(files, config)) is None
    tokenizer = json.loads(files[TOKENIZER])
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [DIGITS, tokenizer["pre_tokenizer"]],
    }
    files[TOKENIZER] = json.dumps(tokenizer).encode()
    changed = json.loads(runner_tokenizer(source_of(files, config)))
    assert changed["pre_tokenizer"]["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}


def test_sentencepiece_of_minicpm4_becomes_the_same_tokenizer(shared_data: Path):
    folder = shared_data / "minicpm4-0.5b"
    names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    files = {name: (folder / name).read_bytes() for name in names}
    config = dataclasses.replace(llama_config(), vocab_size=73448, eos_token_ids=(2,))
    data = runner_tokenizer(source_of(files, config))
    others = {name: file for name, file in files.items() if name != "tokenizer.model"}
    wanted, found = (load_tokenizer(f, config) for f in (files, {**others, TOKENIZER: data}))
    lines = (shared_data / "wikitext-2-raw.valid.txt").read_text(encoding="utf-8").split("\n")[:200]
    for text in (*lines, "<|im_start|>user\n今天 12,345 🦊<|im_end|>", "a  b\t\n\n"):
        assert wanted.encode(text) == found.encode(text)


def test_a_unigram_model_is_refused(tmp_path: Path):
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"some words {i} for a tiny model" for i in range(99)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=36, model_type="unigram"
    )
    files = {"tokenizer.model": (tmp_path / "m.model").read_bytes()}
    with pytest.raises(ExportError, match="not BPE"):
        runner_tokenizer(source_of(files, llama_config()))


def test_a_runtime_that_is_too_old_is_refused():
    pytest.importorskip("executorch", reason="the package executorch is not installed")
    manifest = SimpleNamespace(runtime=dataclasses.replace(RUNTIME, minimum="99"), context=64)
    with pytest.raises(ArtifactError, match="executorch >= 99"):
        ExecuTorchExecutor(
            SimpleNamespace(manifest=manifest, config=llama_config()), RunOptions(), context=64, sparse=None
        )
