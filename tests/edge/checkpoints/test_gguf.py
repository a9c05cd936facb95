"""GGUF reading against the `gguf` package's own dequantizer, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.errors import CheckpointError, ConfigError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.packing import pack, unpack
from edge.quant.scheme import QuantizedMatrix, QuantScheme

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 512, 4, 2, 64, 48
MATRICES = {
    "token_embd": (VOCAB, HIDDEN),
    "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_gate": (INNER, HIDDEN),
    "blk.0.ffn_up": (INNER, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, INNER),
}
NORMS = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
# Where the float16 scales of a block stand; every other bit may be random.
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,)}
HALVES |= {"TQ1_0": (52,), "TQ2_0": (64,), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,)}
HALVES |= {"Q2_K": (80, 82), "Q3_K": (108,), "IQ4_XS": (0,)}
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL", "TQ1_0", "TQ2_0")


def random_tensor(rng: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray:
    """A tensor in the file's own bytes: floats, or blocks of random codes with sane scales."""
    if kind == "BF16":
        return (
            (rng.standard_normal((rows, columns), np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(np.uint8)
        )
    if kind in ("F32", "F16"):
        return rng.standard_normal((rows, columns), np.float32).astype(
            {"F32": np.float32, "F16": np.float16}[kind]
        )
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    blocks = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
    if kind.startswith("TQ"):  # only three of four codes, and five digits below 243, are legal
        plain = rng.integers(-1, 2, (rows, columns)).astype(np.float32)
        blocks = gguf.quants.quantize(plain, Type[kind]).reshape(blocks.shape)
    for at in HALVES.get(kind, ()):
        halves = rng.normal(0, 0.02, (rows, columns // block)).astype("<f2")
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    kind: str = "Q4_0",
    *,
    arch: str = "llama",
    tied: bool = True,
    tokenizer: bool = False,
    replace: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a one-layer model; `replace` maps a tensor's name to (array, type), or None to leave it out.

    Returns the tensors' raw bytes by name.
    """
    rng = np.random.default_rng(7)
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for name, (rows, columns) in (MATRICES if tied else {**MATRICES, "output": (VOCAB, HIDDEN)}).items():
        tensors[f"{name}.weight"] = (random_tensor(rng, rows, columns, kind), kind)
    for name in NORMS:
        tensors[f"{name}.weight"] = (rng.standard_normal(HIDDEN).astype(np.float32), "F32")
    for name, value in (replace or {}).items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(1024)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    if tokenizer:
        writer.add_token_scores([-float(index) for index in range(VOCAB)])
        writer.add_token_types([2, 3, 3, *[1] * (VOCAB - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (metadata or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, (array, tensor_kind) in tensors.items():
        raw_dtype = None if tensor_kind in ("F32", "F16") else Type[tensor_kind]
        writer.add_tensor(name, array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: array for name, (array, _) in tensors.items()}


def hf_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row r of a head stands at 2r in the file for its first half and at 2(r - d/2) + 1 for its second."""
    out = np.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        for row in range(size):
            at = 2 * row if row < size // 2 else 2 * (row - size // 2) + 1
            out[head * size + row] = rows[head * size + at]
    return out


def truth(raw: dict[str, np.ndarray], name: str, kind: str) -> np.ndarray:
    """What the reference decoder makes of a tensor, in Hugging Face's row order."""
    values = raw[f"{name}.weight"]
    if kind == "BF16":
        floats = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        floats = dequantize(values, Type[kind])
    heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV_HEADS}.get(name)
    return floats if heads is None else hf_rows(floats, heads)


PAIRS = {
    "token_embd": "model.embed_tokens",
    "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
    "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
    "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
    "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
    "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
    "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
}


@pytest.mark.parametrize("kind", EXACT)
def test_quantized_types_keep_every_bit(tmp_path: Path, kind: str) -> None:
    raw = write_gguf(tmp_path / "m.gguf", kind)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    infos = {info.name: info for info in checkpoint.tensors}
    for theirs, ours in PAIRS.items():
        info = infos[f"{ours}.weight"]
        matrix = checkpoint.read(info.name)
        assert isinstance(matrix, QuantizedMatrix)
        assert info.exact and info.source_type == kind and info.scheme == matrix.scheme
        assert info.shape == matrix.shape
        expected = truth(raw, theirs, kind)
        np.testing.assert_array_equal(matrix.dequantize(), expected)
        np.testing.assert_array_equal(checkpoint.read_float32(info.name), expected)
        again = unpack(pack(matrix, info.scheme), info.scheme, *info.shape)
        np.testing.assert_array_equal(again.dequantize(), expected)


@pytest.mark.parametrize(("kind", "scheme"), [("Q4_K", "int4-g32-min"), ("IQ4_XS", "int8-g32")])
def test_codes_are_kept_and_scales_rounded_to_half_precision(tmp_path: Path, kind: str, scheme: str) -> None:
    raw = write_gguf(tmp_path / "m.gguf", kind)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    for theirs, ours in PAIRS.items():
        matrix = checkpoint.read(f"{ours}.weight")
        assert isinstance(matrix, QuantizedMatrix) and str(matrix.scheme) == scheme
        expected = truth(raw, theirs, kind)
        np.testing.assert_array_equal(checkpoint.read_float32(f"{ours}.weight"), expected)
        codes = np.abs(matrix.codes.astype(np.float32))
        scales = np.abs(np.repeat(matrix.scales.astype(np.float32), 32, axis=1)) * codes
        own = np.zeros_like(matrix.scales) if matrix.minimums is None else matrix.minimums
        minimums = np.abs(np.repeat(own.astype(np.float32), 32, axis=1))
        bound = (
            scales + minimums
        ) * 2**-11 + codes.max() * 2**-25  # half a unit in the last place, subnormals included
        assert (np.abs(matrix.dequantize() - expected) <= bound * 1.001).all()
    assert not any(info.exact for info in checkpoint.tensors if len(info.shape) == 2)


def test_q3_k_loses_only_the_code_128(tmp_path: Path) -> None:
    """A code is a product of two integers from -4 * 31 to -4 * -32, times the block's float16."""
    raw = write_gguf(tmp_path / "m.gguf", "Q3_K")
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    clipped = 0
    for theirs, ours in PAIRS.items():
        matrix = checkpoint.read(f"{ours}.weight")
        assert isinstance(matrix, QuantizedMatrix) and str(matrix.scheme) == "int8-g32"
        expected = truth(raw, theirs, "Q3_K")
        np.testing.assert_array_equal(checkpoint.read_float32(f"{ours}.weight"), expected)
        step = np.repeat(matrix.scales.astype(np.float32), 32, axis=1)
        largest = expected == 128 * step
        np.testing.assert_array_equal(np.where(largest, 127 * step, expected), matrix.dequantize())
        clipped += int(largest.sum())
    assert clipped > 100
    assert not any(info.exact for info in checkpoint.tensors if len(info.shape) == 2)


@pytest.mark.parametrize("kind", ["Q2_K", "Q5_1", "Q5_K", "Q6_K"])
def test_types_without_counterpart_become_int8(tmp_path: Path, kind: str) -> None:
    raw = write_gguf(tmp_path / "m.gguf", kind)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    infos = {info.name: info for info in checkpoint.tensors}
    for theirs, ours in PAIRS.items():
        info = infos[f"{ours}.weight"]
        matrix = checkpoint.read(info.name)
        assert isinstance(matrix, QuantizedMatrix)
        assert matrix.scheme == info.scheme == QuantScheme("int8", 32) and not info.exact
        expected = truth(raw, theirs, kind)
        np.testing.assert_array_equal(checkpoint.read_float32(info.name), expected)
        step = np.repeat(np.abs(expected).reshape(expected.shape[0], -1, 32).max(axis=-1) / 127, 32, axis=1)
        assert (np.abs(matrix.dequantize() - expected) <= step * 0.57 + 1e-6).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_types(tmp_path: Path, kind: str) -> None:
    raw = write_gguf(tmp_path / "m.gguf", kind)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    for theirs, ours in PAIRS.items():
        values = checkpoint.read(f"{ours}.weight")
        assert isinstance(values, np.ndarray) and values.dtype == np.float32
        np.testing.assert_array_equal(values, truth(raw, theirs, kind))
    for info in checkpoint.tensors:
        assert info.scheme == QuantScheme("f32" if len(info.shape) == 1 else "f16")
        assert info.exact
    norm = checkpoint.read("model.layers.0.input_layernorm.weight")
    np.testing.assert_array_equal(norm, raw["blk.0.attn_norm.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_config(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "m.gguf", tied=tied)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    assert checkpoint.config.tie_word_embeddings == tied
    assert ("lm_head.weight" in {info.name for info in checkpoint.tensors}) == (not tied)
    assert (checkpoint.config.hidden_size, checkpoint.config.num_key_value_heads) == (HIDDEN, KV_HEADS)
    assert checkpoint.config.scale_emb is None
    assert checkpoint.chat_template is None and checkpoint.generation_config == {}


def test_minicpm_architecture_with_longrope(tmp_path: Path) -> None:
    short, long = np.linspace(1, 2, 32, dtype=np.float32), np.linspace(1, 9, 32, dtype=np.float32)
    raw = write_gguf(
        tmp_path / "m.gguf",
        "Q8_0",
        arch="minicpm",
        replace={"rope_factors_short.weight": (short, "F32"), "rope_factors_long.weight": (long, "F32")},
        metadata={
            "minicpm.embedding_scale": 12.0,
            "minicpm.residual_scale": 1.4,
            "minicpm.logit_scale": 4.0,
            "minicpm.rope.scaling.type": "longrope",
            "tokenizer.chat_template": "{{ messages }}",
            "general.sampling.temp": 0.5,
            "general.sampling.top_p": 0.75,
        },
    )
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    config = checkpoint.config
    assert config.model_type == "minicpm"
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12.0, 1.4, 64.0)
    assert config.rope.type == "longrope"
    np.testing.assert_array_equal(config.rope.short_factor, short)
    np.testing.assert_array_equal(config.rope.long_factor, long)
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.generation_config == {"temperature": 0.5, "top_p": 0.75, "do_sample": True}
    matrix = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(matrix.dequantize(), truth(raw, "blk.0.attn_q", "Q8_0"))


def test_a_sampling_setting_of_zero_is_one(tmp_path: Path) -> None:
    zeros = {"temp": 0.0, "top_k": 0, "min_p": 0.0}
    write_gguf(tmp_path / "m.gguf", metadata={f"general.sampling.{key}": zeros[key] for key in zeros})
    found = GGUFCheckpoint(tmp_path / "m.gguf").generation_config
    assert found == {"temperature": 0.0, "top_k": 0, "min_p": 0.0, "do_sample": False}
    write_gguf(tmp_path / "bad.gguf", metadata={"general.sampling.top_p": -0.5})
    with pytest.raises(ConfigError, match=r"'top_p' in the sampling settings .*bad\.gguf"):
        print(GGUFCheckpoint(tmp_path / "bad.gguf").generation_config)


def test_rope_freqs_are_factors_for_every_length(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    write_gguf(tmp_path / "m.gguf", replace={"rope_freqs.weight": (factors, "F32")})
    rope = GGUFCheckpoint(tmp_path / "m.gguf").config.rope
    assert rope.type == "longrope"
    np.testing.assert_array_equal(rope.short_factor, factors)
    np.testing.assert_array_equal(rope.long_factor, factors)
    twice = {"rope_freqs.weight": (factors, "F32"), "rope_factors_long.weight": (factors, "F32")}
    write_gguf(tmp_path / "m.gguf", replace=twice)
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' and 'rope_factors_long\.weight'"):
        GGUFCheckpoint(tmp_path / "m.gguf")


def test_smollm2(smollm2_gguf: Path) -> None:
    checkpoint = GGUFCheckpoint(smollm2_gguf)
    config = checkpoint.config
    assert (config.num_hidden_layers, config.vocab_size, config.tie_word_embeddings) == (30, 49152, True)
    assert len(checkpoint.tensors) == 272 and all(info.exact for info in checkpoint.tensors)
    assert checkpoint.chat_template is not None and "<|im_start|>" in checkpoint.chat_template
    reader = gguf.GGUFReader(smollm2_gguf)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for theirs, ours, heads in (
        ("token_embd", "model.embed_tokens", 0),
        ("blk.17.attn_q", "model.layers.17.self_attn.q_proj", 9),
        ("blk.17.attn_k", "model.layers.17.self_attn.k_proj", 3),
        ("blk.29.ffn_down", "model.layers.29.mlp.down_proj", 0),
    ):
        tensor = tensors[f"{theirs}.weight"]
        expected = dequantize(tensor.data, tensor.tensor_type)
        matrix = checkpoint.read(f"{ours}.weight")
        assert isinstance(matrix, QuantizedMatrix)
        np.testing.assert_array_equal(matrix.dequantize(), hf_rows(expected, heads) if heads else expected)


@pytest.mark.parametrize("fraction", [0.0, 1e-4, 0.001, 0.004, 0.01, 0.3, 0.999])
def test_truncated_file(tmp_path: Path, fraction: float) -> None:
    write_gguf(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(
        CheckpointError, match=r"cut\.gguf' (is truncated or damaged: its \d+ bytes|is not a GGUF file)"
    ):
        GGUFCheckpoint(path)


def test_damaged_header_never_escapes(tmp_path: Path) -> None:
    """Random bytes anywhere in the header end in our own errors (or in a model that still makes sense)."""
    write_gguf(tmp_path / "whole.gguf")
    data = bytearray((tmp_path / "whole.gguf").read_bytes())
    rng = np.random.default_rng(3)
    path = tmp_path / "damaged.gguf"
    for _ in range(150):
        broken = bytearray(data)
        at = int(rng.integers(4, 2600))
        broken[at : at + 2] = rng.bytes(2)
        path.write_bytes(broken)
        try:
            GGUFCheckpoint(path)
        except (CheckpointError, ConfigError) as error:
            assert "\n" not in str(error)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 not one of ours")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        GGUFCheckpoint(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"Cannot read .*b\.gguf': No such file"):
        GGUFCheckpoint(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match="Cannot read"):
        GGUFCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split.count", "x"),
        ("split.count", 2.0),
        ("tokenizer.chat_template", 3.0),
        ("general.sampling.temp", "hot"),
    ],
)
def test_metadata_of_a_wrong_type(tmp_path: Path, key: str, value: Any) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={key: value})
    with pytest.raises(CheckpointError, match=f"field '{key}' of .* must be a"):
        checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
        print(checkpoint.chat_template, checkpoint.generation_config)  # read when asked for


ROWS = np.zeros((HIDDEN, HIDDEN), np.float32)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"blk.0.ffn_up.weight": None}, r"no tensor 'model\.layers\.0\.mlp\.up_proj\.weight'"),
        ({"blk.0.ffn_up.weight": (ROWS, "F32")}, "256x256.*512x256"),
        ({"blk.0.attn_q.bias": (ROWS[0], "F32")}, r"blk\.0\.attn_q\.bias"),
        ({"blk.1.ffn_up.weight": (np.zeros((INNER, HIDDEN), np.float32), "F32")}, r"blk\.1\.ffn_up"),
        (
            {"blk.0.attn_v.weight": (np.zeros((128, 98), np.uint8), "IQ3_XXS")},
            r"blk\.0\.attn_v.*type IQ3_XXS.*supported are F32, .*Q5_0.*IQ4_XS, Q3_K.*Q2_K",
        ),
        ({"output_norm.weight": (np.zeros(HIDDEN // 32 * 34, np.uint8), "Q8_0")}, "output_norm.*float type"),
    ],
)
def test_wrong_tensors(tmp_path: Path, replace: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "m.gguf", replace=replace)
    with pytest.raises(CheckpointError, match=message):
        GGUFCheckpoint(tmp_path / "m.gguf")


def test_a_code_that_is_not_ternary_is_found_when_read(tmp_path: Path) -> None:
    blocks = random_tensor(np.random.default_rng(0), 512, 256, "TQ2_0")
    blocks[9, 7] = 0xFF
    write_gguf(tmp_path / "m.gguf", replace={"blk.0.ffn_up.weight": (blocks, "TQ2_0")})
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"ffn_up.*not ternary"):
        checkpoint.read("model.layers.0.mlp.up_proj.weight")


def test_experts_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"llama.expert_count": 8.0, "llama.expert_used_count": 2.0})
    with pytest.raises(CheckpointError, match="mixture of experts"):
        GGUFCheckpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("kind", "quantize", "scheme", "exact"),
    [
        ("Q5_0", None, "int8-g32", True),
        ("IQ4_NL", None, "int8-g32", True),
        ("Q5_0", "f16", "f16", False),
        ("Q5_1", None, "int8-g32", False),
        ("Q2_K", None, "int8-g32", False),
        ("Q3_K", None, "int8-g32", False),
        ("IQ4_XS", None, "int8-g32", False),
        ("Q4_K", None, "int4-g32-min", False),
        ("Q4_K", "f16", "f16", False),
        ("F16", None, "f16", True),
        ("F32", None, "f16", False),
    ],
)
def test_a_bundle_says_what_was_rounded(
    tmp_path: Path, kind: str, quantize: str | None, scheme: str, exact: bool
) -> None:
    """What the reader rounds is not exact, even where the conversion keeps what it was given."""
    raw = write_gguf(tmp_path / "m.gguf", kind, tokenizer=True)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    convert(checkpoint, tmp_path / "bundle", quantize=quantize)
    bundle = Bundle.open(tmp_path / "bundle")
    for theirs, ours in PAIRS.items():
        tensor = bundle.tensors[f"{ours}.weight"]
        assert (str(tensor.scheme), tensor.source_type, tensor.exact) == (scheme, kind, exact)
        stored = unpack(bundle.data(tensor.name), tensor.scheme, *tensor.shape)
        values = stored.dequantize() if isinstance(stored, QuantizedMatrix) else stored
        expected = truth(raw, theirs, kind)
        assert np.array_equal(values, expected) == exact
        np.testing.assert_allclose(values, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_ternary_values_in_a_float_type(tmp_path: Path, kind: str) -> None:
    """q is found to be ternary though its rows are interleaved in the file."""
    codes = np.random.default_rng(3).integers(-1, 2, (HEADS * HEAD_DIM, HIDDEN))
    scales = np.linspace(1, 2, 2 * len(codes)).reshape(-1, 2).repeat(128, axis=1) * 2.0**-7
    values = (codes * scales).astype(np.float16).astype(np.float32)
    if kind == "BF16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    stored = {
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8),
    }[kind]
    write_gguf(tmp_path / "m.gguf", replace={"blk.0.attn_q.weight": (stored, kind)})
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    info = next(info for info in checkpoint.tensors if "q_proj" in info.name)
    assert (str(info.scheme), info.source_type, info.exact) == ("ternary-g128", f"{kind} ternary", True)
    matrix = checkpoint.read(info.name)
    assert isinstance(matrix, QuantizedMatrix)
    np.testing.assert_array_equal(matrix.dequantize(), hf_rows(values, HEADS))
    np.testing.assert_array_equal(checkpoint.read_float32(info.name), hf_rows(values, HEADS))
