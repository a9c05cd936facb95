"""A model family is one declaration: readers, writers, networks and refusals follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.synthetic import RandomCheckpoint
from edge.config import ModelConfig
from edge.config.families import FIXED, Family, register_family
from edge.config.gguf import config_from_gguf, config_to_gguf
from edge.config.huggingface import config_from_hf, config_to_hf
from edge.config.roles import DECODER, MOE, QK_NORMS, QKV_BIASES, Role, renamed
from edge.config.tensors import EMBEDDING, HEAD, beyond_llama, expected_tensors
from edge.errors import CheckpointError, ConfigError, ExportError, NativeError
from edge.executors.checks import check_parts
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets.gguf.target import TARGET as GGUF
from edge.formats.bundle.reader import Bundle
from edge.formats.safetensors import SafetensorsFile
from edge.hub.convert import convert
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import load_decoder, save_huggingface
from edge.model.weights.fold import fold_mup
from edge.quant.scheme import QuantScheme
from tests.oak import OAK, registered
from tests.oak import oak as oak_of
from tests.steps import forward

from .tiny import byte_tokenizer_files, make_source

EXACT = 5e-5  # of the truth's standard deviation, as in tests/correctness
ACORN = Family(
    "acorn",
    "AcornForCausalLM",
    gguf="acorn",
    roles=renamed(
        DECODER,
        hf={
            EMBEDDING: "tree.wte.weight",
            "input_layernorm.weight": "ln_1.weight",
            "self_attn.q_proj.weight": "attn.q.weight",
            "mlp.down_proj.weight": "mlp.c_proj.weight",
            HEAD: "output.weight",
        },
        gguf={"self_attn.q_proj.weight": "attn_query.weight"},
    ),
    layers="tree.h",
    fields={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "tie_word_embeddings": "tied"},
    defaults={"tie_word_embeddings": True, "rope_theta": 50000.0, "rms_norm_eps": 1e-6},
    fixed={**FIXED, "activation": ("swiglu",)},
)
ACORN_JSON = {
    "model_type": "acorn",
    "architectures": ["AcornForCausalLM"],
    "vocab_size": 264,
    "n_embd": 128,
    "intermediate_size": 160,
    "n_layer": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": [2],
    "activation": "swiglu",
}
OUTPUT_BIAS = Role("self_attn.o_proj.bias", ("hidden",), "attention biases", joins_stream=True)
TOKENS = torch.arange(24) * 7 % 264


@pytest.fixture(autouse=True)
def register() -> Iterator[Callable[[Family], Family]]:
    """Families of a test are forgotten after it."""
    with registered(ACORN, OAK):
        yield register_family


def network(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights that float16 holds exactly; norms and biases are not what they begin as."""
    torch.manual_seed(seed)
    decoder = Decoder(config).requires_grad_(False).eval()
    for name, weight in decoder.named_parameters():
        if weight.dim() == 1:
            weight.copy_(torch.rand_like(weight) + (0.5 if name.endswith("weight") else 0.0))
        else:
            weight.copy_((torch.randn_like(weight) * weight.shape[1] ** -0.5).half().float())
    return decoder


def save(folder: Path, decoder: Decoder) -> Path:
    save_huggingface(folder, decoder.config, decoder.state_dict(), tokenizer_files=byte_tokenizer_files())
    return folder


def acorn(**changes: Any) -> ModelConfig:
    return config_from_hf({**ACORN_JSON, **changes})


def oak(**changes: Any) -> ModelConfig:
    return oak_of(replace(acorn(), **changes))


def write_gguf(source: Source, folder: Path) -> GGUFCheckpoint:
    """Written without running it: the reference of an export runs on the native executor."""
    written = GGUF.write(source, ExportOptions("gguf"), folder, None)
    return GGUFCheckpoint(folder / written.model)


def largest_error(found: Any, truth: torch.Tensor) -> float:
    return float(np.abs(found - truth.numpy()).max() / truth.std())


def test_fields_and_defaults_of_a_config():
    config = acorn()
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (128, 2, 32)
    assert config.tie_word_embeddings and config.rope.theta == 50000.0 and config.rms_norm_eps == 1e-6
    assert not acorn(tied=False).tie_word_embeddings
    assert config_from_hf(config_to_hf(acorn(tied=False))) == acorn(tied=False)
    assert {"n_embd", "n_layer", "tied"} <= config_to_hf(config).keys()
    with pytest.raises(ConfigError, match="lacks the required field 'n_embd'"):
        config_from_hf({name: value for name, value in ACORN_JSON.items() if name != "n_embd"})
    assert acorn(hidden_size=128) == config
    with pytest.raises(ConfigError, match="'n_embd' is 128, but 'hidden_size' is 64"):
        acorn(hidden_size=64)
    with pytest.raises(ConfigError, match=r"'activation' of config\.json is 'relu'"):
        acorn(activation="relu")
    with pytest.raises(ConfigError, match="AcornForCausalLM and OakForCausalLM"):
        acorn(architectures=["ElmForCausalLM"])
    with pytest.raises(ConfigError, match=r"minicpm, llama, .*, acorn and oak"):
        config_from_gguf({"general.architecture": "elm"})


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_in_the_familys_own_names(tmp_path: Path, tied: bool):
    decoder = network(acorn(tied=tied))
    folder = save(tmp_path / "acorn", decoder)
    names = SafetensorsFile(folder / "model.safetensors").tensors.keys()
    assert {"tree.wte.weight", "tree.h.1.ln_1.weight", "tree.h.0.self_attn.k_proj.weight"} <= names
    assert ("output.weight" in names) is not tied and not any(
        name.startswith("model.layers") for name in names
    )
    checkpoint = HuggingFaceCheckpoint(folder)
    assert checkpoint.config == decoder.config
    assert [info.name for info in checkpoint.tensors] == list(expected_tensors(decoder.config))
    for name, weight in decoder.state_dict().items():
        np.testing.assert_array_equal(checkpoint.read_float32(name), weight.numpy(), err_msg=name)


def test_a_head_beside_a_default_of_tying(tmp_path: Path):
    folder = save(tmp_path / "acorn", network(acorn(tied=False)))
    data = json.loads((folder / "config.json").read_text())
    del data["tied"]
    (folder / "config.json").write_text(json.dumps(data))
    assert not HuggingFaceCheckpoint(folder).config.tie_word_embeddings


def test_names_of_another_family_are_refused(tmp_path: Path):
    decoder = network(replace(acorn(), model_type="llama"))
    folder = save(tmp_path / "llama", decoder)
    (folder / "config.json").write_text(json.dumps(config_to_hf(acorn())))
    with pytest.raises(
        CheckpointError, match=r"'model\.embed_tokens\.weight', which models of type acorn call"
    ):
        HuggingFaceCheckpoint(folder)


def test_native_equals_torch(tmp_path: Path):
    decoder = network(acorn())
    convert(HuggingFaceCheckpoint(save(tmp_path / "acorn", decoder)), tmp_path / "bundle", quantize="f16")
    options = RunOptions(threads=1, activations="float32", kv_type="float32")
    executor = open_executor(Bundle.open(tmp_path / "bundle"), options)
    tokens = TOKENS.numpy().astype(np.int32)
    found = forward(executor, executor.new_cache(), tokens, logits="all").logits
    executor.close()
    assert largest_error(found, decoder(TOKENS)) < EXACT


def test_a_bundle_keeps_every_part_for_the_torch_executor(tmp_path: Path):
    decoder = network(oak(tie_word_embeddings=False))
    convert(HuggingFaceCheckpoint(save(tmp_path / "oak", decoder)), tmp_path / "bundle", quantize="f16")
    executor = open_executor(Bundle.open(tmp_path / "bundle"), RunOptions("torch", context=32))
    found = forward(executor, executor.new_cache(), TOKENS.numpy(), logits="all").logits
    assert largest_error(found, decoder(TOKENS)) < EXACT


@pytest.mark.parametrize("family", ["acorn", "oak"])
def test_random_weights(tmp_path: Path, family: str):
    """Synthetic checkpoints need no word about the family."""
    config = acorn() if family == "acorn" else oak()
    checkpoint = RandomCheckpoint(config, QuantScheme("int4", 32))
    assert {info.name: info.shape for info in checkpoint.tensors} == expected_tensors(config)
    convert(checkpoint, tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").config == config
    if family == "oak":
        np.testing.assert_array_equal(checkpoint.read("model.layers.0.self_attn.q_proj.bias"), 0)


@pytest.mark.parametrize("family", ["acorn", "oak"])
def test_gguf_and_back(tmp_path: Path, family: str):
    config = acorn() if family == "acorn" else oak()
    source = make_source(tmp_path, config, QuantScheme("int8", 32))
    found = write_gguf(source, tmp_path)
    assert found._metadata["general.architecture"] == family
    query = "blk.1.attn_query.weight" if family == "acorn" else "blk.1.attn_q.bias"
    assert query in found._raw
    assert found.config == config
    for name in source.tensors:
        np.testing.assert_array_equal(found.read_float32(name), source.floats(name), err_msg=name)


def test_gguf_pairs_change_the_order_of_rows_on_disk(tmp_path: Path):
    """Acorn's rows lie as they are, oak's are interleaved: weights and biases alike."""
    for config, moved in ((acorn(), False), (oak(), True)):
        source = make_source(tmp_path, config, QuantScheme("f16"))
        folder = tmp_path / config.model_type
        folder.mkdir()
        raw = write_gguf(source, folder)._raw
        key = source.floats("model.layers.0.self_attn.k_proj.weight")
        stored = raw["blk.0.attn_k.weight"].data.astype(np.float32)
        wanted = key.reshape(2, 2, 16, -1).swapaxes(1, 2).reshape(key.shape) if moved else key
        np.testing.assert_array_equal(stored, wanted)
        if moved:
            bias = source.floats("model.layers.0.self_attn.q_proj.bias")
            stored = raw["blk.0.attn_q.bias"].data
            np.testing.assert_array_equal(stored, bias.reshape(4, 2, 16).swapaxes(1, 2).reshape(-1))


def test_fused_tensors_are_taken_apart(tmp_path: Path):
    decoder = network(oak(tie_word_embeddings=True))
    folder = save(tmp_path / "oak", decoder)
    names = SafetensorsFile(folder / "model.safetensors").tensors
    assert names["model.layers.0.self_attn.qkv_proj.weight"].shape == (256, 128)
    assert names["model.layers.0.self_attn.qkv_proj.bias"].shape == (256,)
    assert names["model.layers.1.mlp.gate_up_proj.weight"].shape == (320, 128)
    assert not any(".q_proj" in name or ".up_proj" in name for name in names)
    read = load_decoder(folder)
    assert read.config == decoder.config
    for name, weight in decoder.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("part", ["q_proj.weight", "v_proj.bias"])
def test_a_weight_beside_the_tensor_that_it_is_fused_in(tmp_path: Path, part: str):
    folder = save(tmp_path / "oak", network(oak()))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    fused = tensors[f"model.layers.0.self_attn.qkv_proj.{part.partition('.')[2]}"]
    name = f"model.layers.0.self_attn.{part}"
    tensors[name] = fused[: 128 if part[0] == "q" else 64].clone()
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"has '{name}' twice, in its tensors .*qkv_proj"):
        HuggingFaceCheckpoint(folder)


def test_parts_that_are_not_computed_are_refused_by_name(
    tmp_path: Path, register: Callable[[Family], Family]
):
    config = oak()
    assert beyond_llama(config) == ("biases of q, k and v", "norms of q and k", "layers without RoPE")
    words = "biases of q, k and v, norms of q and k and layers without RoPE"
    with pytest.raises(NativeError, match=f"cuda executor does not compute {words}, which this oak"):
        check_parts(config, "cuda", beyond_llama(config))
    wide = replace(QK_NORMS[0], shape=("queries",))  # one norm over all heads together
    for name, roles, part in (
        ("elm", (OUTPUT_BIAS,), "attention biases"),
        ("ash", QKV_BIASES[1:], "biases of q, k and v"),
        ("fir", (wide, QK_NORMS[1]), "norms of q and k"),
    ):
        register(Family(name, name.title(), roles=(*DECODER, *roles)))
        source = make_source(tmp_path, replace(acorn(), model_type=name))
        for target in ("bundle", "onnx", "executorch", "coreml"):
            with pytest.raises(ExportError, match=f"can't deal with {part}, which this {name} network has"):
                export_model(source, ExportOptions(target), tmp_path / target)
    odd = Source(make_source(tmp_path, replace(config, layers_without_rope=(0,))).bundle)
    with pytest.raises(ExportError, match="which layers do without RoPE"):
        export_model(odd, ExportOptions("gguf"), tmp_path / "gguf")


def test_a_role_without_a_gguf_name_is_refused(tmp_path: Path, register: Callable[[Family], Family]):
    register(Family("elm", "ElmForCausalLM", gguf="elm", roles=(*DECODER, OUTPUT_BIAS)))
    config = replace(acorn(), model_type="elm")
    assert "model.layers.1.self_attn.o_proj.bias" in Decoder(config).state_dict()
    with pytest.raises(ExportError, match="no name for attention biases"):
        export_model(make_source(tmp_path, config), ExportOptions("gguf"), tmp_path / "out")
    register(Family("ash", "AshForCausalLM"))
    with pytest.raises(ExportError, match="no architecture for the model family ash"):
        config_to_gguf(replace(acorn(), model_type="ash"))


def test_muP_is_folded_into_what_joins_the_stream(register: Callable[[Family], Family]):
    """Biases of sub-layer outputs are scaled as the matrices are."""
    register(Family("elm", "ElmForCausalLM", roles=(*DECODER, OUTPUT_BIAS)))
    scales = {"scale_emb": 3.0, "scale_depth": 0.7, "dim_model_base": 32.0}
    decoder = network(replace(acorn(), model_type="elm", **scales))
    config, tensors = fold_mup(decoder.config, decoder.state_dict())
    assert config.model_type == "elm" and not config.has_mup_scales
    folded = Decoder.from_tensors(config, tensors)
    torch.testing.assert_close(folded(TOKENS), decoder(TOKENS), rtol=1e-4, atol=1e-4)


def test_a_declaration_names_roles_that_exist():
    with pytest.raises(ValueError, match=r"no role is called self_attn\.q"):
        renamed(DECODER, hf={"self_attn.q": "q"})
    assert len({role.name for role in (*DECODER, *MOE, *QKV_BIASES, *QK_NORMS)}) == 21
