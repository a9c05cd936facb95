"""Public EAGLE-2 drafts under all their names, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edge.checkpoints.draft import EMBEDDING_COPY, HEAD_COPY, DraftCheckpoint
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import draft_tensors
from edge.errors import CheckpointError, ConfigError, EdgeError
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.drafts import (
    State,
    cpmcu_state,
    draft_fields,
    eagle_state,
    floats,
    layer_state,
    llama_target,
    minicpm_target,
    norms,
    vllm_state,
    write_draft,
)
from tests.edge.checkpoints.test_int4_checkpoints import draw, pack_gptq, pack_marlin, words

TARGET, LLAMA = minicpm_target(), llama_target()
FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}


def check(draft: DraftCheckpoint, state: State) -> None:
    """Everything is read, and as the file has it."""
    assert [info.name for info in draft.tensors] == list(draft_tensors(draft.config))
    for info in draft.tensors:
        values = draft.read(info.name)
        assert isinstance(values, np.ndarray) and values.dtype == np.float32
        np.testing.assert_array_equal(values, floats(state, info.name))
        np.testing.assert_array_equal(draft.read_float32(info.name), values)


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_names_of_eagle(tmp_path: Path, torch_file: bool, bias: bool) -> None:
    state = eagle_state(LLAMA, bias)
    embedding = torch.randn(LLAMA.vocab_size, LLAMA.hidden_size).half()
    stored = {"embed_tokens.weight": embedding, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    folder = write_draft(tmp_path, draft_fields(LLAMA), {**state, **stored}, torch_file=torch_file)
    draft = DraftCheckpoint(folder, LLAMA)
    assert draft.config == draft_shape(LLAMA, fc_bias=bias, rope=draft.config.rope)
    assert not draft.config.attention_norm and draft.source == str(folder)
    check(draft, state)
    rows = np.array([5, 3, 200])
    copy = draft.copy_of(EMBEDDING_COPY, rows)
    assert copy is not None
    np.testing.assert_array_equal(copy, embedding.float().numpy()[rows])
    assert draft.copy_of(HEAD_COPY, rows) is None
    assert draft.token_ids is None and draft.frequency_lists == {} and draft.tokenizer_files == {}


@pytest.mark.parametrize("torch_file", [False, True])
def test_names_of_cpmcu(tmp_path: Path, torch_file: bool) -> None:
    state = cpmcu_state(TARGET)
    folder = write_draft(tmp_path, draft_fields(TARGET), state, torch_file=torch_file)
    for count in (100, 50):
        torch.save(list(range(count)), folder / f"freq_{count}.pt")
    draft = DraftCheckpoint(folder, TARGET, source="openbmb/a")
    assert draft.config == draft_shape(TARGET) and draft.source == "openbmb/a"
    check(draft, state)
    assert {count: path.name for count, path in draft.frequency_lists.items()} == {
        50: "freq_50.pt",
        100: "freq_100.pt",
    }


def test_fc_in_two_halves_and_fused_matrices(tmp_path: Path) -> None:
    state = {**cpmcu_state(TARGET), "fc.bias": torch.ones(TARGET.hidden_size)}
    halves = state["fc.weight"].split(TARGET.hidden_size, 1)
    stored = {"fc1.weight": halves[0], "fc2.weight": halves[1], "fc1.bias": state["fc.bias"]}
    stored |= {name: value for name, value in state.items() if not name.startswith("fc.")}
    for whole, parts in FUSED.items():
        stem = f"layers.0.{whole.split('.')[0]}."
        stored[f"layers.0.{whole}.weight"] = torch.cat(
            [stored.pop(f"{stem}{part}_proj.weight") for part in parts]
        )
    stored["token_id_remap"] = torch.tensor([4, 2, 9], dtype=torch.int32)
    draft = DraftCheckpoint(write_draft(tmp_path, draft_fields(TARGET), stored), TARGET)
    check(draft, state)
    assert draft.token_ids is not None and draft.token_ids.tolist() == [4, 2, 9]
    del stored["fc2.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'fc2.weight', one of fc's two halves"):
        DraftCheckpoint(write_draft(tmp_path, draft_fields(TARGET), stored), TARGET)


def test_names_of_vllm(tmp_path: Path) -> None:
    fields = draft_fields(TARGET, architectures=["EagleMiniCPMForCausalLM"], mup_denominator=3)
    copies = {f"model.{EMBEDDING_COPY}": (203, 144), HEAD_COPY: (203, 144)}
    stored = {**vllm_state(TARGET), **{name: torch.randn(shape) for name, shape in copies.items()}}
    draft = DraftCheckpoint(write_draft(tmp_path, fields, stored), TARGET)
    assert draft.config == draft_shape(TARGET)  # a denominator of 3 is that of one layer more than two
    check(draft, cpmcu_state(TARGET))
    assert draft.copy_of(HEAD_COPY, np.array([1])) is not None

    names = ("embedding_layernorm.weight", "hidden_states_layernorm.weight")
    stored = {**eagle_state(LLAMA), **norms(LLAMA, *names)}
    folder = write_draft(tmp_path / "llama", draft_fields(LLAMA, add_para_norm=True), stored)
    draft = DraftCheckpoint(folder, LLAMA)
    assert draft.config.input_norms
    np.testing.assert_array_equal(draft.read("input_norm2.weight"), floats(stored, names[1]))


def test_ternary_values_are_found(tmp_path: Path) -> None:
    state = cpmcu_state(TARGET)
    name = "layers.0.mlp.up_proj.weight"
    state[name] = torch.randint(-1, 2, state[name].shape).bfloat16() / 4
    draft = DraftCheckpoint(write_draft(tmp_path, draft_fields(TARGET), state), TARGET)
    matrix = draft.read(name)
    assert isinstance(matrix, QuantizedMatrix) and matrix.scheme.kind == "ternary"
    np.testing.assert_array_equal(matrix.dequantize(), floats(state, name))


def packed_state(target: Any, pack: Callable[..., Any], fused: bool, halves: bool) -> tuple[State, State]:
    """(the file's tensors, what they mean) of a draft that was trained for 4 bits in groups of 64."""
    meant: State = norms(
        target, "input_norm1.weight", "input_norm2.weight", "layers.0.input_layernorm.weight"
    )
    stored = {**meant, "layers.0.post_attention_layernorm.weight": torch.ones(target.hidden_size)}
    meant = dict(stored)
    shapes = {name: value.shape for name, value in layer_state(target).items() if value.ndim == 2}
    groups: dict[str, list[str]] = {name.removesuffix(".weight"): [name] for name in shapes}
    if fused:
        for whole, parts in FUSED.items():
            names = [f"layers.0.{whole.split('.')[0]}.{part}_proj" for part in parts]
            for name in names:
                del groups[name]
            groups[f"layers.0.{whole}"] = [f"{name}.weight" for name in names]
    for seed, (stem, names) in enumerate(groups.items()):
        truths = [draw(*shapes[name], 64, True, seed + 20 * part) for part, name in enumerate(names)]
        for name, truth in zip(names, truths, strict=True):
            meant[name] = torch.tensor(truth.weights)
        whole = truths[0]
        if len(truths) > 1:
            for name in ("codes", "scales", "zeros"):
                setattr(whole, name, np.concatenate([getattr(each, name) for each in truths]))
        if stem == "fc" and halves:
            parts = _halves(whole)
            tensors = {
                kind: np.concatenate([part[kind] for part in map(pack, parts)], axis=-1)
                for kind in ("qweight", "scales")
            }
        else:
            tensors = pack(whole)
        for kind, values in tensors.items():
            stored[f"{stem}.{kind}"] = torch.tensor(np.ascontiguousarray(values))
    return stored, meant


def _halves(truth: Any) -> list[Any]:
    middle, count = truth.codes.shape[1] // 2, truth.scales.shape[1] // 2
    return [
        type(truth)(
            truth.codes[:, half * middle : (half + 1) * middle],
            truth.scales[:, half * count : (half + 1) * count],
            truth.zeros[:, half * count : (half + 1) * count],
            truth.group_of[:middle],
        )
        for half in (0, 1)
    ]


@pytest.mark.parametrize(
    ("pack", "fused", "halves"),
    [(pack_gptq, False, False), (pack_marlin, True, True), (pack_marlin, False, False)],
    ids=["GPTQ", "CPM.cu", "Marlin"],
)
def test_drafts_trained_for_4_bits(tmp_path: Path, pack: Any, fused: bool, halves: bool) -> None:
    target = minicpm_target(hidden_size=128, intermediate_size=192)
    stored, meant = packed_state(target, pack, fused, halves)
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq"}
    fields = draft_fields(target, quantization_config=entry)
    folder = write_draft(tmp_path, fields, stored, name="model_gptq_marlin.safetensors")
    draft = DraftCheckpoint(folder, target)
    assert draft.config == draft_shape(target)
    for info in draft.tensors:
        values = draft.read(info.name)
        if len(info.shape) == 2:
            assert info.exact and info.scheme == QuantScheme("int4", 64)
            assert isinstance(values, QuantizedMatrix) and values.scheme == info.scheme
            values = values.dequantize()
        np.testing.assert_array_equal(values, floats(meant, info.name))
        np.testing.assert_array_equal(draft.read_float32(info.name), floats(meant, info.name))

    stored["layers.0.mlp.extra.qweight"] = torch.tensor(words(np.zeros((1, 8), np.int64)))
    with pytest.raises(CheckpointError, match=r"'layers.0.mlp.extra.qweight', which no EAGLE-2 draft"):
        DraftCheckpoint(write_draft(folder, fields, stored, name="model_gptq_marlin.safetensors"), target)
    fields = draft_fields(target)
    with pytest.raises(CheckpointError, match=r"packed 4-bit weights but no 'quantization_config'"):
        DraftCheckpoint(write_draft(folder, fields, stored, name="model_gptq_marlin.safetensors"), target)


def renamed(old: str, new: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[new] = state.pop(old)

    return change


def added(name: str, *shape: int, dtype: torch.dtype = torch.float16) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (added("d2t", 32, dtype=torch.int64), "a tensor 'd2t', which no EAGLE-2 draft of this shape has"),
        (
            lambda state: state.update({"fc.weight": torch.zeros(144, 432)}),
            "'fc.weight' .* has shape 144x432, but its configuration asks for 144x288",
        ),
        (added("markov_head.w1", 203, 8), "a tensor 'markov_head.w1', which no EAGLE-2 draft of this shape"),
        (added("medusa_head.weight", 144), "is a Medusa draft .tensor 'medusa_head.weight'"),
        (added("norm.weight", 144), "a tensor 'norm.weight', which no EAGLE-2 draft of this shape has"),
        (added("layers.1.mlp.up_proj.weight", 272, 144), "a tensor 'layers.1.mlp.up_proj.weight', which no"),
        (added("layers.0.self_attn.q_proj.bias", 128), "a tensor 'layers.0.self_attn.q_proj.bias'"),
        (lambda state: state.pop("layers.0.mlp.up_proj.weight"), "no tensor 'layers.0.mlp.up_proj.weight'"),
        (lambda state: state.pop("input_norm2.weight"), "no tensor 'input_norm2.weight'"),
        (
            added("fc.weight", 144, 144),
            "'fc.weight' .* has shape 144x144, but its configuration asks for 144x288",
        ),
        (added("layers.0.self_attn.qkv_proj.weight", 256, 144), "twice, in one tensor with others and alone"),
        (added("layers.0.self_attn.qkv_proj.weight", 250, 144), "shape 250x144, .* asks for 256 rows"),
        (added("model.fc.weight", 144, 288), "has 'fc.weight' twice"),
        (added("fc.weight", 144, 288, dtype=torch.int8), "'fc.weight' .* has type I8, but a floating-point"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[State], Any], says: str) -> None:
    state = cpmcu_state(TARGET)
    change(state)
    folder = write_draft(tmp_path, draft_fields(TARGET), state)
    with pytest.raises(EdgeError, match=says) as caught:
        DraftCheckpoint(folder, TARGET)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json, so it is no draft"):
        DraftCheckpoint(tmp_path, TARGET)
    (tmp_path / "config.json").write_text(json.dumps(draft_fields(TARGET)))
    with pytest.raises(CheckpointError, match=r"has a config\.json but no weights"):
        DraftCheckpoint(tmp_path, TARGET)
    write_draft(tmp_path, draft_fields(TARGET, hidden_size=160), cpmcu_state(TARGET))
    with pytest.raises(ConfigError, match=r"whose hidden_size is 160, not 144 as here"):
        DraftCheckpoint(tmp_path, TARGET)
    # the field is told before the weights are opened
    (tmp_path / "config.json").write_text(json.dumps(draft_fields(TARGET, medusa_num_heads=3)))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"a Medusa draft .field 'medusa_num_heads'"):
        DraftCheckpoint(tmp_path, TARGET)
    (tmp_path / "config.json").write_text(json.dumps(draft_fields(TARGET)))
    with pytest.raises(CheckpointError, match=r"truncated"):
        DraftCheckpoint(tmp_path, TARGET)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"embed_tokens.weight": torch.zeros(200, 144)}, "has shape 200x144, .* asks for 203x144"),
        ({"token_id_remap": torch.tensor([1, 203])}, "'token_id_remap' .* token id 203, which lies outside"),
        ({"token_id_remap": torch.tensor([1.0])}, "'token_id_remap' .* is no list of token ids"),
    ],
)
def test_what_lies_beside_the_weights_is_refused(tmp_path: Path, stored: State, says: str) -> None:
    folder = write_draft(tmp_path, draft_fields(TARGET), {**cpmcu_state(TARGET), **stored})
    draft = DraftCheckpoint(folder, TARGET)
    with pytest.raises(CheckpointError, match=says):
        draft.copy_of(EMBEDDING_COPY, np.array([0]))
        draft.token_ids  # noqa: B018


def test_the_file_that_safetensors_reads(tmp_path: Path) -> None:
    """What these tests write is what the public library reads: the same names."""
    state = cpmcu_state(TARGET)
    write_draft(tmp_path, draft_fields(TARGET), state)
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
