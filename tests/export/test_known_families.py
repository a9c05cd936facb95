"""Every family that is declared computes what its own class in transformers does, and is read and written."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config.huggingface import config_from_hf
from edge.config.rope import rope_parameters
from edge.export.options import ExportOptions
from edge.export.targets.gguf.target import TARGET as GGUF
from edge.model.weights.checkpoint import load_decoder, save_huggingface
from edge.quant.scheme import QuantScheme

from .tiny import byte_tokenizer_files, make_source

EXACT = 5e-5  # of the truth's standard deviation, as in tests/correctness
LENGTH = 300
CONTEXT = 512
TOKENS = torch.arange(LENGTH) * 7 % 264
LISTS = {
    "short_factor": [1 + i / 32 for i in range(24)],
    "long_factor": [1 + i / 4 for i in range(24)],
}


class Case(NamedTuple):
    """A network of a family. name: of its class in transformers. fields: beside those of `SMALL`."""

    name: str
    fields: dict[str, Any]


SMALL = {
    "vocab_size": 264,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
WIDE = {"head_dim": 64}  # not hidden_size / heads
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}


def longrope(original: int, partial: float = 0.75) -> dict[str, Any]:
    """Phi-4-mini's entry for heads of 64, whose regime the lengths decide."""
    lists = LISTS if partial != 1 else {name: values + [3.0] * 8 for name, values in LISTS.items()}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            **{"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": partial},
            **lists,
        },
    }


CASES = {
    "llama-3.2": Case("Llama", {**WIDE, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "minicpm5": Case("Llama", {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    "mistral": Case("Mistral", {**WIDE, "sliding_window": None}),
    "mistral-window": Case("Mistral", {"sliding_window": LENGTH}),
    "qwen2": Case("Qwen2", {"rope_parameters": YARN}),
    "qwen2-tied": Case("Qwen2", {"tie_word_embeddings": True, "use_sliding_window": True}),
    "qwen3": Case("Qwen3", {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3-tied": Case("Qwen3", {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "smollm3": Case("SmolLM3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    "smollm3-list": Case("SmolLM3", {"no_rope_layers": [1, 0, 0, 1], "tie_word_embeddings": True}),
    "phi3": Case("Phi3", {"head_dim": 64, "sliding_window": 2048}),
    "phi3-partial": Case("Phi3", {"num_attention_heads": 2, "rope_parameters": PARTIAL}),
    "phi3-short": Case("Phi3", {"num_attention_heads": 2, "tie_word_embeddings": True, **longrope(CONTEXT)}),
    "phi3-long": Case("Phi3", {"num_attention_heads": 2, **longrope(256)}),
    "phi3-whole-heads": Case("Phi3", {"num_attention_heads": 2, **longrope(256, partial=1)}),
}


def theirs(case: Case) -> Any:
    """A random network of transformers; norms and biases are not what they begin as."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.name}Config")(**{**SMALL, **copy.deepcopy(case.fields)})
    model = getattr(transformers, f"{case.name}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.add_(noise * (0.2 if parameter.dim() == 1 else 0.07))
    return model


def largest_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).abs().max() / truth.std())


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name, data in byte_tokenizer_files().items():
        (folder / name).write_bytes(data)
    return folder


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
