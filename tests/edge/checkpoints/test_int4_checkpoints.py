"""GPTQ, AWQ and Marlin folders: packed here number by number, and read back exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.int4_packings import gptq_zeros
from edge.config.huggingface import config_from_hf
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.errors import CheckpointError
from edge.hub.resolve import open_model
from edge.quant.packing import unpack
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.configs import TOKENIZER

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"


@dataclass
class Truth:
    """A matrix before packing: codes and zeros in 0..15, group_of names the group of every column."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group_of: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        scales, zeros = (part.astype(np.float32)[:, self.group_of] for part in (self.scales, self.zeros))
        return scales * (self.codes.astype(np.float32) - zeros)


def draw(rows: int, columns: int, group: int, symmetric: bool, seed: int, act_order: bool = False) -> Truth:
    random = np.random.default_rng(seed)
    count = -(-columns // group)
    group_of = np.arange(columns) // group
    return Truth(
        random.integers(0, 16, (rows, columns)),
        random.uniform(0.001, 0.02, (rows, count)).astype(np.float16),
        np.full((rows, count), 8) if symmetric else random.integers(0, 16, (rows, count)),
        random.permutation(group_of) if act_order else group_of,
    )


def words(numbers: np.ndarray) -> np.ndarray:
    """int32 words of eight 4-bit numbers each, which stand along the last axis, lowest bits first."""
    return (numbers.astype(np.uint64) * 16 ** np.arange(8, dtype=np.uint64)).sum(-1).astype("<u4").view("<i4")


def zeros_v2(zeros: np.ndarray) -> np.ndarray:
    """`gptq_v2`: as they are."""
    return words(zeros.T.reshape(zeros.shape[1], -1, 8))


def zeros_autogptq(zeros: np.ndarray) -> np.ndarray:
    """`gptq` as AutoGPTQ's `pack` writes it: one less, or'ed into place (it can't write a zero of 0)."""
    less = (zeros.T - 1).astype(np.uint32).reshape(zeros.shape[1], -1, 8)
    packed = np.zeros(less.shape[:2], np.uint32)
    for place in range(8):
        packed |= less[..., place] << np.uint32(4 * place)
    return packed.view(np.int32)


def zeros_gptqmodel(zeros: np.ndarray) -> np.ndarray:
    """`gptq` as GPTQModel saves it: packed as they are, then `qzeros -= 0b0001...0001` on int32 words."""
    with np.errstate(over="ignore"):
        return zeros_v2(zeros) - np.int32(0b00010001000100010001000100010001)


def pack_gptq(truth: Truth, pack_zeros: Any = zeros_gptqmodel) -> dict[str, np.ndarray]:
    codes = truth.codes
    rows, columns = codes.shape
    return {
        "qweight": words(codes.T.reshape(columns // 8, 8, rows).swapaxes(1, 2)),
        "qzeros": pack_zeros(truth.zeros),
        "scales": truth.scales.T,
        "g_idx": truth.group_of.astype(np.int32),
    }


def pack_awq(truth: Truth) -> dict[str, np.ndarray]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    rows = len(truth.codes)
    return {
        "qweight": words(truth.codes.T.reshape(-1, rows // 8, 8)[..., order]),
        "qzeros": words(truth.zeros.T.reshape(-1, rows // 8, 8)[..., order]),
        "scales": truth.scales.T,
    }


def pack_marlin(truth: Truth) -> dict[str, np.ndarray]:
    """The operand of an m16n8k16 product: thread t holds inputs 2 (t % 4) + (0, 1, 8, 9) of output t / 4."""
    codes, (rows, columns) = truth.codes, truth.codes.shape

    def numbers(tile_row: int, word: int) -> list[int]:
        block, rest = divmod(word, 128)
        thread, tile = divmod(rest, 4)
        held = [
            codes[block * 64 + tile * 16 + right + thread // 4, tile_row * 16 + 2 * (thread % 4) + below]
            for right in (0, 8)
            for below in (0, 1, 8, 9)
        ]
        return [held[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)]

    scales = truth.scales.T
    permuted = np.empty_like(scales)
    if len(scales) > 1:
        order, size = [i + 8 * j for i in range(8) for j in range(8)], 64
    else:
        order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
        size = 32
    for start in range(0, rows, size):
        permuted[:, start : start + size] = scales[:, [start + at for at in order]]
    held = [[numbers(tile_row, word) for word in range(rows * 2)] for tile_row in range(columns // 16)]
    return {"qweight": words(np.array(held)), "scales": permuted}


def write_folder(
    folder: Path,
    pack: Callable[[Truth], dict[str, np.ndarray]],
    entry: dict[str, Any] | None,
    *,
    fused: bool = False,
    file: str = "model.safetensors",
    change: Callable[[dict[str, np.ndarray]], None] | None = None,
    **drawing: Any,
) -> dict[str, Truth]:
    """A checkpoint whose linear layers are packed; returns their truths."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": entry}))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    tensors: dict[str, np.ndarray] = {}
    truths: dict[str, Truth] = {}
    random = np.random.default_rng(1)
    for seed, (name, shape) in enumerate(expected_tensors(config_from_hf(CONFIG)).items()):
        if len(shape) == 1 or name in (EMBEDDING, HEAD):
            tensors[name] = random.standard_normal(shape).astype(np.float16)
        else:
            truths[name.removesuffix(".weight")] = draw(*shape, seed=seed, **drawing)
    layers = dict(truths)
    if fused:
        for layer in range(CONFIG["num_hidden_layers"]):
            for one, parts in (
                ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
                ("mlp.gate_up_proj", ("gate_proj", "up_proj")),
            ):
                stem = f"model.layers.{layer}.{one.partition('.')[0]}"
                joined = [layers.pop(f"{stem}.{part}") for part in parts]
                layers[f"model.layers.{layer}.{one}"] = Truth(
                    *(np.concatenate([getattr(t, f) for t in joined]) for f in ("codes", "scales", "zeros")),
                    joined[0].group_of,
                )
    for name, truth in layers.items():
        tensors |= {f"{name}.{part}": array for part, array in pack(truth).items()}
    if change is not None:
        change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / file)
    return truths


def check(folder: Path, truths: dict[str, Truth], scheme: str, exact: bool) -> None:
    checkpoint = HuggingFaceCheckpoint(folder)
    infos = {info.name: info for info in checkpoint.tensors}
    for name, truth in truths.items():
        info = infos[f"{name}.weight"]
        assert (str(info.scheme), info.exact) == (scheme, exact), name
        np.testing.assert_array_equal(checkpoint.read_float32(info.name), truth.weights)
        matrix = checkpoint.read(info.name)
        assert isinstance(matrix, QuantizedMatrix) and matrix.shape == truth.codes.shape
        if matrix.scheme.kind == "int4":
            np.testing.assert_array_equal(matrix.codes, truth.codes)
            np.testing.assert_array_equal(matrix.scales, truth.scales)
        error = np.abs(matrix.dequantize() - truth.weights)
        if exact:
            assert not error.any()
        elif matrix.scheme.kind == "int4":  # the minimum is rounded to float16
            assert (error <= 0.01 * truth.scales.astype(np.float32)[:, truth.group_of]).all()
        else:  # to one part in 127 of the largest weight
            assert error.max() <= 0.51 * np.abs(truth.weights).max() / 127


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_gptq_symmetric_is_exact(tmp_path: Path, group: int) -> None:
    entry = {**GPTQ, "group_size": group}
    truths = write_folder(tmp_path, pack_gptq, entry, group=group if group > 0 else 4096, symmetric=True)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    schemes = {info.name: str(info.scheme) for info in checkpoint.tensors}
    # 128 columns are one group of 128, which is a scale per row.
    assert schemes[f"{UP}.weight"] == ("int4-row" if group in (128, -1) else f"int4-g{group}")
    assert schemes[f"{DOWN}.weight"] == ("int4-row" if group == -1 else f"int4-g{group}")
    assert schemes[EMBEDDING] == "f16" and schemes["model.norm.weight"] == "f32"
    for name, truth in truths.items():
        matrix = checkpoint.read(f"{name}.weight")
        assert isinstance(matrix, QuantizedMatrix)
        np.testing.assert_array_equal(matrix.codes, truth.codes)
        np.testing.assert_array_equal(matrix.dequantize(), truth.weights)


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize(
    ("settings", "pack_zeros", "least"),
    [
        ({"checkpoint_format": "gptq"}, zeros_autogptq, 1),
        ({}, zeros_gptqmodel, 0),
        ({"checkpoint_format": "gptq", "format": "gptq", "method": "gptq"}, zeros_gptqmodel, 0),
        ({"checkpoint_format": "gptq_v2"}, zeros_v2, 0),
        ({"format": "gptq_v2"}, zeros_v2, 0),
    ],
)
def test_gptq_with_zeros(
    tmp_path: Path, group: int, settings: dict[str, str], pack_zeros: Any, least: int
) -> None:
    """As different packers write them, zeros of 0 (which borrow from their neighbours) among them."""
    entry = {**GPTQ, "group_size": group, "sym": False, **settings}

    def pack(truth: Truth) -> dict[str, np.ndarray]:
        truth.zeros = truth.zeros.clip(least)
        return pack_gptq(truth, pack_zeros)

    truths = write_folder(tmp_path, pack, entry, group=group if group > 0 else 4096, symmetric=False)
    check(tmp_path, truths, "int4-g32-min" if group > 0 else "int4-row-min", exact=False)


@pytest.mark.parametrize(
    ("word", "zeros"),
    [
        (0x76543210 - 0x11111111, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0xEEEEEEEF, [0] * 8),  # 0 - 0x11111111
        (0x77777777, [8] * 8),
        (0xEEEEEEEE, [15] * 8),
        (0xEEEEEEEE - 0xF0, [15, 0, *[15] * 6]),
        (0x0000000F, [0, 2, 1, 1, 1, 1, 1, 1]),  # 0x11111120 - 0x11111111
    ],
)
def test_a_word_of_zeros_by_hand(word: int, zeros: list[int]) -> None:
    stored = np.array([[word]], np.uint32).view(np.int32)
    assert gptq_zeros(stored, less_one=True).T.tolist() == [zeros]


def test_gptq_zeros_that_float16_holds_are_exact(tmp_path: Path) -> None:
    def pack(truth: Truth) -> dict[str, np.ndarray]:
        truth.zeros = 2 ** (truth.zeros % 4)
        return pack_gptq(truth)

    truths = write_folder(tmp_path, pack, {**GPTQ, "group_size": 32}, group=32, symmetric=False)
    check(tmp_path, truths, "int4-g32-min", exact=True)


def test_act_order_is_seen_in_g_idx(tmp_path: Path) -> None:
    entry = {**GPTQ, "group_size": 32, "desc_act": True}
    truths = write_folder(tmp_path, pack_gptq, entry, group=32, symmetric=True)
    check(
        tmp_path, truths, "int4-g32", exact=True
    )  # the config says so, the groups are in order all the same
    truths = write_folder(tmp_path, pack_gptq, entry, group=32, symmetric=True, act_order=True)
    check(tmp_path, truths, "int8-g32", exact=False)


@pytest.mark.parametrize("group", [16, 48])
def test_groups_that_we_have_not(tmp_path: Path, group: int) -> None:
    entry = {**GPTQ, "group_size": group, "sym": False}
    truths = write_folder(tmp_path, pack_gptq, entry, group=group, symmetric=False)
    check(tmp_path, truths, "int8-g32", exact=False)


def test_awq(tmp_path: Path) -> None:
    entry = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}

    def pack(truth: Truth) -> dict[str, np.ndarray]:
        truth.zeros = truth.zeros % 16
        return pack_awq(truth)

    truths = write_folder(tmp_path, pack, entry, group=64, symmetric=False)
    check(tmp_path, truths, "int4-g64-min", exact=False)
    truths = write_folder(tmp_path, pack_awq, entry, group=64, symmetric=True)
    check(tmp_path, truths, "int4-g64", exact=True)


@pytest.mark.parametrize("method", ["gptq", "marlin"])
@pytest.mark.parametrize("group", [64, -1])
def test_marlin_fused_as_cpm_cu_writes_it(tmp_path: Path, group: int, method: str) -> None:
    """Its converter keeps the GPTQ config, fuses q, k, v and gate, up, and leaves zeros and g_idx out."""
    truths = write_folder(
        tmp_path,
        pack_marlin,
        {**GPTQ, "quant_method": method, "group_size": group},
        fused=True,
        file="model_gptq_marlin.safetensors",
        group=group if group > 0 else 4096,
        symmetric=True,
    )
    check(tmp_path, truths, "int4-row" if group == -1 else "int4-g64", exact=True)


def test_a_fused_layer_beside_a_part_of_it(tmp_path: Path) -> None:
    """One of the two would win silently."""

    def add_part(tensors: dict[str, np.ndarray]) -> None:
        stem = UP.replace("up_proj", "gate_up_proj")
        tensors[f"{UP}.qweight"] = tensors[f"{stem}.qweight"][:, : 2 * 192].copy()
        tensors[f"{UP}.scales"] = tensors[f"{stem}.scales"][:, :192].copy()

    entry = {**GPTQ, "quant_method": "marlin", "group_size": 64}
    write_folder(tmp_path, pack_marlin, entry, fused=True, change=add_part, group=64, symmetric=True)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.\w+_proj\.qweight', .*or a second one"):
        HuggingFaceCheckpoint(tmp_path)


def test_it_opens_as_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed matrices go into the bundle as they are; embedding and head, which are floats, become int8."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    entry = {**GPTQ, "group_size": 32}
    truths = write_folder(tmp_path / "model", pack_gptq, entry, group=32, symmetric=True)
    bundle = open_model(tmp_path / "model")
    tensor = bundle.tensors[f"{DOWN}.weight"]
    assert (str(tensor.scheme), tensor.exact, tensor.source_type) == ("int4-g32", True, "GPTQ int4")
    matrix = unpack(bundle.data(tensor.name), tensor.scheme, tensor.rows, tensor.columns)
    assert isinstance(matrix, QuantizedMatrix)
    np.testing.assert_array_equal(matrix.dequantize(), truths[DOWN].weights)
    assert str(bundle.tensors[HEAD].scheme) == "int8-g32"
    plain = open_model(tmp_path / "model", head="f16")
    assert plain.tensors[HEAD].exact and str(plain.tensors[HEAD].scheme) == "f16"
    assert str(open_model(tmp_path / "model", quantize="source").tensors[EMBEDDING].scheme) == "f16"
    assert open_model(tmp_path / "model", quantize="int8").tensors[f"{DOWN}.weight"].scheme == QuantScheme(
        "int8", 32
    )


def test_config_beside_the_weights_and_biases_of_zeros(tmp_path: Path) -> None:
    """AutoGPTQ's older files: settings in a file of their own, and a bias of zeros in every layer."""

    def add_biases(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {
            name.replace("qweight", "bias"): np.zeros(array.shape[1], np.float16)
            for name, array in list(tensors.items())
            if name.endswith("qweight")
        }

    truths = write_folder(tmp_path, pack_gptq, None, change=add_biases, group=32, symmetric=True)
    with pytest.raises(CheckpointError, match=r"packed 4-bit weights but no 'quantization_config'"):
        HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "sym": True}))
    check(tmp_path, truths, "int4-g32", exact=True)

    def ones(tensors: dict[str, np.ndarray]) -> None:
        add_biases(tensors)
        tensors[f"{UP}.bias"][3] = 1

    write_folder(tmp_path, pack_gptq, None, change=ones, group=32, symmetric=True)
    with pytest.raises(CheckpointError, match=r"up_proj\.bias"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 8}, "bits 8"),
        ({"bits": None}, "bits None"),
        ({"group_size": "128"}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": -2}, "group_size"),
        ({"group_size": True}, "group_size"),
        ({"group_size": 64}, r"scales.*group_size 64.*\[1, 128\]|scales.*group_size 64"),
        ({"quant_method": "awq"}, r"qweight.*method awq"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"format": "gptq_p"}, "format 'gptq_p'"),
        ({"quant_method": "awq", "format": "gemv_fast"}, "format 'gemv_fast'"),
        (
            {"checkpoint_format": "gptq_v2", "format": "gptq"},
            "contradicts itself: it names checkpoint_format 'gptq_v2' and format 'gptq'",
        ),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_contradictory_settings(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_folder(tmp_path, pack_gptq, {**GPTQ, "group_size": 32, **changes}, group=32, symmetric=True)
    with pytest.raises(CheckpointError, match=says) as caught:
        HuggingFaceCheckpoint(tmp_path)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_plain_weights_with_settings(tmp_path: Path) -> None:
    def as_floats(tensors: dict[str, np.ndarray]) -> None:
        tensors.clear()
        shapes = expected_tensors(config_from_hf(CONFIG))
        tensors |= {name: np.ones(shape, np.float16) for name, shape in shapes.items()}

    write_folder(tmp_path, pack_gptq, GPTQ, change=as_floats, group=32, symmetric=True)
    with pytest.raises(CheckpointError, match="plain weights but a 'quantization_config'"):
        HuggingFaceCheckpoint(tmp_path)


def remove(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove(f"{UP}.scales"), r"lacks tensor 'model\.layers\.1\.mlp\.up_proj\.scales'"),
        (remove(f"{UP}.qweight"), r"up_proj"),
        (put(f"{UP}.qweight", np.zeros((16, 192), np.float32)), r"up_proj\.qweight.*F32"),
        (put(f"{UP}.qweight", np.zeros((15, 192), np.int32)), r"up_proj\.qweight.*\[15, 192\]"),
        (put(f"{UP}.qzeros", np.zeros((4, 23), np.int32)), r"up_proj\.qzeros"),
        (put(f"{UP}.g_idx", np.full(128, 4, np.int32)), r"g_idx.*group 4"),
        (put(f"{UP}.g_idx", np.full(128, -1, np.int32)), r"g_idx"),
        (put("model.layers.1.mlp.extra.qweight", np.zeros((16, 192), np.int32)), "extra"),
        (put("model.layers.2.mlp.up_proj.qweight", np.zeros((16, 192), np.int32)), r"layers\.2"),
        (put(f"{UP}.weight", np.zeros((192, 128), np.float16)), "up_proj"),
    ],
)
def test_damaged_layers(tmp_path: Path, change: Any, says: str) -> None:
    write_folder(tmp_path, pack_gptq, {**GPTQ, "group_size": 32}, change=change, group=32, symmetric=True)
    with pytest.raises(CheckpointError, match=says) as caught:
        HuggingFaceCheckpoint(tmp_path)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
