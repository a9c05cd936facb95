"""Checkpoints into PyTorch and back out: bit for bit, and as transformers and safetensors read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.huggingface import config_from_hf, config_to_hf
from edge.config.presets import PRESETS, preset
from edge.errors import CheckpointError, ConfigError
from edge.hub.resolve import open_model
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import load_decoder, load_tensors, open_checkpoint, save_huggingface
from edge.model.weights.fold import fold_mup

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}


def tokens(config: ModelConfig, n: int = 21) -> torch.Tensor:
    return torch.randint(config.vocab_size, (n,), generator=torch.Generator().manual_seed(n))


def logits_of(peer: Any, ids: torch.Tensor) -> torch.Tensor:
    return peer(ids[None]).logits[0].float()


@pytest.fixture
def config(tiny_config) -> ModelConfig:
    return tiny_config(model_type="llama", intermediate_size=96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("container", ["whole", "sharded", "bin"])
def test_round_trip_is_bit_exact(tmp_path: Path, config, llama, container: str, dtype: torch.dtype):
    """transformers -> here -> transformers; every tensor keeps its bits and its type."""
    peer = llama(config).to(dtype)
    peer.config.torch_dtype = dtype
    if container == "bin":
        (tmp_path / "theirs").mkdir()
        peer.config.save_pretrained(tmp_path / "theirs")
        torch.save(peer.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    else:
        size = "100KB" if container == "sharded" else "1GB"
        peer.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    checkpoint = open_checkpoint(tmp_path / "theirs")
    tensors = load_tensors(checkpoint)
    shard_bytes = 100_000 if container == "sharded" else 1 << 30
    save_huggingface(tmp_path / "ours", checkpoint.config, tensors, shard_bytes=shard_bytes)

    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert (len(files) > 2) == (container == "sharded")
    if container == "sharded":
        assert all(file.stat().st_size < 110_000 for file in files)
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert stored.keys() == peer.state_dict().keys()
    for name, tensor in peer.state_dict().items():
        assert stored[name].dtype == dtype
        assert torch.equal(stored[name], tensor)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto", attn_implementation="eager")
    assert again.dtype == dtype
    for name, tensor in peer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    if dtype == torch.float32:  # `peer.to` has rounded its rotary frequencies otherwise
        ids = tokens(config)
        assert torch.equal(logits_of(again.eval(), ids), logits_of(peer, ids))
    assert open_checkpoint(tmp_path / "ours").config == checkpoint.config


def test_decoder_from_a_folder(tmp_path: Path, config, llama):
    peer = llama(config)
    peer.save_pretrained(tmp_path / "theirs")
    ids = tokens(config)
    torch.testing.assert_close(load_decoder(tmp_path / "theirs")(ids), logits_of(peer, ids), **TOLERANCE)


@pytest.mark.parametrize("tied", [False, True])
def test_minicpm_folded_into_llama(tmp_path: Path, tiny_config, llama, tied: bool):
    """transformers' own Llama loads the folded folder and gives MiniCPM's logits, LongRoPE included."""
    rope = RopeConfig(
        "longrope", 10000.0, 1.0, 64, tuple(1 + i / 9 for i in range(16)), tuple(2 + i / 3 for i in range(16))
    )
    config = tiny_config(rope=rope, tie_word_embeddings=tied, **MUP)
    weights = dict(llama(config).state_dict())
    if tied:
        del weights["lm_head.weight"]
    decoder = Decoder.from_tensors(config, weights)
    plain, folded = fold_mup(config, decoder.state_dict())
    assert plain.embedding_scale == plain.residual_scale == plain.logit_scale == 1.0
    save_huggingface(tmp_path / "llama", plain, folded)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", attn_implementation="eager").eval()
    assert type(peer) is LlamaForCausalLM
    ids = tokens(config)
    torch.testing.assert_close(logits_of(peer, ids), decoder(ids), **TOLERANCE)
    assert weights["model.embed_tokens.weight"] is not folded["model.embed_tokens.weight"]


def test_experts_round_trip(tmp_path: Path, tiny_config):
    config = tiny_config(num_experts=4, num_experts_per_tok=2, **MUP)
    torch.manual_seed(0)
    decoder = Decoder(config).bfloat16()
    save_huggingface(tmp_path / "moe", config, decoder.state_dict())
    again = load_decoder(tmp_path / "moe", dtype=None)
    assert again.config == config
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(ConfigError, match="num_experts"):
        fold_mup(config, decoder.state_dict())
    (tmp_path / "moe" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="num_experts is 4"):
        open_model(tmp_path / "moe")


ROPES = [
    RopeConfig(theta=500000.0),
    RopeConfig("linear", factor=4.0),
    RopeConfig("dynamic", 1e6, 4.0),
    RopeConfig("yarn", 1e4, 4.0, 32, beta_slow=0.5, truncate=False, mscale=1.5, mscale_all_dim=0.7),
    RopeConfig("yarn", 1e4, 4.0, 32, attention_factor=0.9),
    RopeConfig("longrope", 1e4, 1.0, 32, (1.5,) * 16, (2.5,) * 16, attention_factor=1.25),
    RopeConfig("llama3", 5e5, 8.0, 32, beta_fast=4.0, beta_slow=1.0),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.type)
def test_config_survives(tiny_config, rope: RopeConfig):
    changes = {"rope": rope, "pad_token_id": 3, "eos_token_ids": (2, 5), "sparse": SparseConfig(topk=7)}
    for config in (tiny_config(**changes, **MUP), tiny_config(**changes, model_type="llama")):
        assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive(name: str):
    assert config_from_hf(config_to_hf(preset(name))) == preset(name)


def test_everything_beside_the_weights(tmp_path: Path, config):
    decoder = Decoder(config)
    files = {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"add_bos_token": true}'}
    save_huggingface(
        tmp_path / "out",
        config,
        decoder.state_dict(),
        tokenizer_files=files,
        chat_template="模板 {{ messages }}",
        generation_config={"temperature": 0.8},
    )
    checkpoint = HuggingFaceCheckpoint(tmp_path / "out")
    assert checkpoint.tokenizer_files == files
    assert checkpoint.chat_template == "模板 {{ messages }}"
    assert checkpoint.generation_config == {"temperature": 0.8}
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="exists already"):
        save_huggingface(tmp_path / "out", config, decoder.state_dict())


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path, config):
    tensors = dict(Decoder(config).state_dict())
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=name):
        save_huggingface(tmp_path / "out", config, {**tensors, name: tensors[name][1:]})
    with pytest.raises(CheckpointError, match=r"up_proj.*int8"):
        save_huggingface(tmp_path / "out", config, {**tensors, name: tensors[name].to(torch.int8)})
    with pytest.raises(CheckpointError, match="embed_tokens"):
        save_huggingface(tmp_path / "out", replace(config, vocab_size=97), tensors)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        save_huggingface(tmp_path / "file" / "out", config, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_packed_weights_become_what_their_format_says(tmp_path: Path, config, llama):
    """GPTQ's scale * (code - zero), with zeros that float16 minimums would round."""
    tensors = {name: tensor for name, tensor in llama(config).state_dict().items()}
    name = "model.layers.1.mlp.up_proj"
    rows, columns = tensors.pop(f"{name}.weight").shape
    random = np.random.default_rng(0)
    codes, zeros = random.integers(0, 16, (columns, rows)), random.integers(0, 16, (columns // 32, rows))
    scales = random.uniform(0.001, 0.02, zeros.shape).astype(np.float16)
    places = 16 ** np.arange(8)
    by_inputs = (codes.reshape(columns // 8, 8, rows) * places[:, None]).sum(1)
    by_outputs = ((zeros - 1).reshape(-1, rows // 8, 8) * places).sum(-1) % 2**32  # a zero of 0 borrows
    packed = {"qweight": by_inputs.astype("<u4").view("<i4"), "qzeros": by_outputs.astype("<u4").view("<i4")}
    tensors |= {f"{name}.{part}": torch.from_numpy(array) for part, array in packed.items()}
    tensors[f"{name}.scales"] = torch.from_numpy(scales)
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({**config_to_hf(config), "quantization_config": entry}))
    save_file(tensors, tmp_path / "model.safetensors")
    decoder = load_decoder(tmp_path)
    group = np.arange(columns) // 32
    wanted = scales.astype(np.float32)[group] * (codes - zeros[group])
    found = decoder.get_parameter(f"{name}.weight").numpy()
    np.testing.assert_array_equal(found, wanted.T.astype(np.float32))


def test_gguf_to_huggingface(tmp_path: Path, smollm2_gguf: Path):
    """The default model, from GGUF through PyTorch into transformers: the same logits."""
    checkpoint = open_checkpoint(smollm2_gguf)
    tensors = load_tensors(checkpoint)
    decoder = Decoder.from_tensors(checkpoint.config, tensors, context=64)
    save_huggingface(tmp_path / "hf", checkpoint.config, tensors, shard_bytes=200 << 20)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").eval()
    ids = tokens(checkpoint.config, 12)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(peer, ids), decoder(ids), rtol=1e-3, atol=1e-3)
    name = "model.layers.3.mlp.down_proj.weight"
    assert torch.equal(peer.state_dict()[name], tensors[name])
