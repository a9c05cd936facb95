"""Fixtures of the command-line tests: the installed script as a real process, and a tiny checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

VOCABULARY = 259
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def edge_script() -> str:
    """The path of the installed program `edge`."""
    script = Path(sys.executable).parent / "edge"
    if not script.exists():
        pytest.skip("the script `edge` is not installed; run `make setup`")
    return str(script)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose state folder is empty; the cache of converted models is the tests' own."""
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def run_edge(edge_script: str, environment: dict[str, str]) -> Run:
    """`run_edge(*arguments, stdin="", **changes)`: the finished process, with text in stdout and stderr."""

    def run(*arguments: str, stdin: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [edge_script, *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            **{"env": environment, "timeout": 120, **changes},
        )

    return run


@pytest.fixture
def run_inside(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The same program without a process of its own, for refusals: starting one takes most of their time."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        from edge.apps.cli.main import main

        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["edge", *arguments])
        code = main()
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> str:
    """The default model's name, if its package is installed."""
    assert smollm2_gguf.exists()
    return "smollm2-135m"


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Path]:
    """`tiny_checkpoint(change=..., **config)`: a Hugging Face folder of a random one-layer Llama.

    change: called with the dict of tensors before they are written. The test gets a cache of its own.
    """

    environment["EDGE_CACHE"] = str(tmp_path / "cache")

    def make(change: Callable[[dict[str, Any]], None] = lambda tensors: None, **config: Any) -> Path:
        from safetensors.numpy import save_file

        random = np.random.default_rng(0)
        shapes = {
            "model.embed_tokens.weight": (VOCABULARY, 64),
            "model.norm.weight": (64,),
            "model.layers.0.input_layernorm.weight": (64,),
            "model.layers.0.post_attention_layernorm.weight": (64,),
            "model.layers.0.self_attn.q_proj.weight": (64, 64),
            "model.layers.0.self_attn.k_proj.weight": (32, 64),
            "model.layers.0.self_attn.v_proj.weight": (32, 64),
            "model.layers.0.self_attn.o_proj.weight": (64, 64),
            "model.layers.0.mlp.gate_proj.weight": (96, 64),
            "model.layers.0.mlp.up_proj.weight": (96, 64),
            "model.layers.0.mlp.down_proj.weight": (64, 96),
        }
        tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        change(tensors)
        folder = tmp_path / "tiny"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_text(byte_tokenizer())
        fields = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        (folder / "config.json").write_text(json.dumps({**fields, **config}))
        return folder

    return make


def byte_tokenizer() -> str:
    """A `tokenizer.json` with three control tokens and one token per byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())
