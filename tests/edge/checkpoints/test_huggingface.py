"""Hugging Face folders: values equal to torch, in every container, and a sentence for each thing missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.errors import CheckpointError, ConfigError
from edge.quant.scheme import QuantScheme

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}


def make_weights(config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = expected_tensors(config_from_hf(config))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_folder(
    folder: Path, container: str = "safetensors", dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> Any:
    """A checkpoint with a token of a tokenizer; returns its weights."""
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    weights = make_weights(CONFIG, dtype)
    if container in ("safetensors", "bin"):
        parts = {{"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[container]: weights}
    else:
        stem, suffix = (
            ("model", "safetensors") if container == "sharded safetensors" else ("pytorch_model", "bin")
        )
        names = list(weights)
        cuts = [names[:7], names[7:12], names[12:]]
        parts = {
            f"{stem}-{index + 1:05d}-of-00003.{suffix}": {name: weights[name] for name in cut}
            for index, cut in enumerate(cuts)
        }
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, part in parts.items():
        save_file(part, folder / name) if name.endswith("safetensors") else torch.save(part, folder / name)
    return weights


@pytest.mark.parametrize("container", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_equal_torch(tmp_path: Path, container: str, dtype: torch.dtype) -> None:
    weights = write_folder(tmp_path, container, dtype)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.config == config_from_hf(CONFIG)
    assert [info.name for info in checkpoint.tensors] == list(weights)
    for info in checkpoint.tensors:
        assert info.shape == tuple(weights[info.name].shape)
        assert info.scheme == QuantScheme("f32" if len(info.shape) == 1 else "f16") and info.exact
        values = checkpoint.read(info.name)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, weights[info.name].float().numpy())


def test_what_transformers_writes(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    fields = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}
    model = LlamaForCausalLM(LlamaConfig(**{**fields, "tie_word_embeddings": True}))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.config.tie_word_embeddings and checkpoint.config.eos_token_ids == (2, 3)
    state = model.state_dict()
    for info in checkpoint.tensors:
        np.testing.assert_array_equal(checkpoint.read(info.name), state[info.name].float().numpy())


def test_tokenizer_template_and_generation_config(tmp_path: Path) -> None:
    write_folder(tmp_path)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.tokenizer_files == {"tokenizer.json": b"{}"}
    assert checkpoint.chat_template is None and checkpoint.generation_config == {}
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.8}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "plain"}')
    (tmp_path / "special_tokens_map.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not a tokenizer file")
    assert checkpoint.generation_config == {"top_p": 0.8}
    assert checkpoint.chat_template == "plain"
    assert set(checkpoint.tokenizer_files) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    named = {"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert checkpoint.chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("{# 模板 #}", encoding="utf-8")
    assert checkpoint.chat_template == "{# 模板 #}"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        _ = checkpoint.tokenizer_files


def test_real_minicpm4_files(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "minicpm4-8b"
    with pytest.raises(CheckpointError, match="no weights"):
        HuggingFaceCheckpoint(folder)
    files = ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
    write_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for name in (*files, "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert set(checkpoint.tokenizer_files) == set(files)
    assert checkpoint.chat_template is not None and "<|im_start|>" in checkpoint.chat_template
    assert checkpoint.generation_config["temperature"] == 0.8


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors", None])
def test_quantized_checkpoints_are_refused_by_method(tmp_path: Path, method: str) -> None:
    write_folder(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=f"quantized with {method or 'an unnamed'}"):
        HuggingFaceCheckpoint(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    weights = write_folder(tmp_path)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*type I8"):
        HuggingFaceCheckpoint(tmp_path)


def test_incomplete_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        HuggingFaceCheckpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        HuggingFaceCheckpoint(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="no weights"):
        HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        HuggingFaceCheckpoint(tmp_path)


def test_weights_that_contradict_the_config(tmp_path: Path) -> None:
    write_folder(tmp_path, intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.weight.*96x64.*128x64"):
        HuggingFaceCheckpoint(tmp_path)
    write_folder(tmp_path, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"layers\.2\."):
        HuggingFaceCheckpoint(tmp_path)
    write_folder(tmp_path, model_type="gpt2")
    with pytest.raises(ConfigError, match="gpt2"):
        HuggingFaceCheckpoint(tmp_path)


def test_a_head_of_its_own_is_not_lost(tmp_path: Path) -> None:
    """MiniCPM ties by default, but not a file that has another head; test_which_weights.py has more."""
    minicpm = {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        **{"scale_emb": 1, "scale_depth": 1.4, "dim_model_base": 64},
    }
    weights = write_folder(tmp_path, **minicpm, tie_word_embeddings=None)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert not checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.read("lm_head.weight"), weights["lm_head.weight"].float())
    weights.pop("lm_head.weight")
    write_folder(tmp_path, **minicpm, tie_word_embeddings=None)
    save_file(weights, tmp_path / "model.safetensors")
    assert HuggingFaceCheckpoint(tmp_path).config.tie_word_embeddings


def test_named_templates_of_wrong_types(tmp_path: Path) -> None:
    write_folder(tmp_path)
    entries = [{"name": ["default"]}, 3, {"name": "default", "template": "x"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    assert HuggingFaceCheckpoint(tmp_path).chat_template == "x"


def test_broken_shards(tmp_path: Path) -> None:
    write_folder(tmp_path, "sharded safetensors")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    second = "model-00002-of-00003.safetensors"

    moved = {**content["weight_map"], "model.norm.weight": second}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(CheckpointError, match=rf"{second}' lacks tensor 'model\.norm\.weight'"):
        HuggingFaceCheckpoint(tmp_path)
    for outside in ([second], "../secret.safetensors", "/etc/passwd", "..\\x.safetensors", 3):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], "model.norm.weight": outside}}))
        with pytest.raises(CheckpointError, match="cannot belong to it"):
            HuggingFaceCheckpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no 'weight_map'"):
        HuggingFaceCheckpoint(tmp_path)
    index.write_text(json.dumps(content))
    (tmp_path / second).unlink()
    with pytest.raises(CheckpointError, match=rf"Cannot read .*{second}"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["merges.txt", "tokenizer.json", "config.json", "model.safetensors", "chat_template.jinja"]
)
@pytest.mark.parametrize("target", ["/etc/hostname", "/dev/zero", "../outside"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str, target: str) -> None:
    """They would copy a file of this machine into exports, or never end."""
    folder = tmp_path / "model"
    write_folder(folder)
    (folder / name).unlink(missing_ok=True)
    (tmp_path / "outside").write_text("{}")
    (folder / name).symlink_to(target)
    with pytest.raises(CheckpointError, match=r"is a link to a file outside|no weights"):
        checkpoint = HuggingFaceCheckpoint(folder)
        _ = checkpoint.tokenizer_files, checkpoint.chat_template


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    weights = write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "real.weights")
    (tmp_path / "model.safetensors").symlink_to("real.weights")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    name = "model.norm.weight"
    np.testing.assert_array_equal(checkpoint.read(name), weights[name].float().numpy())


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_pipes_are_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"Cannot read .*{name}.*not a regular file"):
        checkpoint = HuggingFaceCheckpoint(tmp_path)
        _ = checkpoint.tokenizer_files, checkpoint.chat_template
