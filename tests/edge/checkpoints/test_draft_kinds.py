"""Public EAGLE-3 drafts and the multi-token layers of training, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.draft import EMBEDDING_COPY, HEAD_COPY, DraftCheckpoint
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import RopeConfig
from edge.config.draft import draft_tensors
from edge.config.draft_names import MULTI_TOKEN, public_name
from edge.errors import EdgeError
from edge.quant.scheme import QuantizedMatrix
from tests.drafts import (
    State,
    draft_fields,
    eagle3_fields,
    eagle3_state,
    floats,
    llama_target,
    minicpm_target,
    multi_token_state,
    write_draft,
)
from tests.edge.checkpoints.test_int4_checkpoints import draw, pack_gptq

TARGET, LLAMA = minicpm_target(num_hidden_layers=8), llama_target(num_hidden_layers=12)


def check(draft: DraftCheckpoint, state: State) -> None:
    """Everything is read, and as the file has it."""
    assert [info.name for info in draft.tensors] == list(draft_tensors(draft.config))
    for info in draft.tensors:
        wanted = floats(state, public_name(draft.config.kind, info.name))
        np.testing.assert_array_equal(draft.read_float32(info.name), wanted)
        np.testing.assert_array_equal(draft.read(info.name), wanted)


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize("target", [TARGET, LLAMA], ids=["MiniCPM", "Llama"])
def test_eagle3(tmp_path: Path, torch_file: bool, target: Any) -> None:
    """With and without a MiniCPM's scales at the target; the draft has none."""
    state = eagle3_state(target)
    embedding = torch.randn(target.vocab_size, target.hidden_size)
    folder = write_draft(
        tmp_path, eagle3_fields(target), {**state, EMBEDDING_COPY: embedding}, torch_file=torch_file
    )
    draft = DraftCheckpoint(folder, target)
    assert draft.config == draft_shape(target, "eagle3", head_rows=40)
    check(draft, state)
    assert draft.token_ids is not None
    assert draft.token_ids.tolist() == (state["d2t"] + torch.arange(40)).tolist()
    rows = np.array([5, 0])
    copy = draft.copy_of(EMBEDDING_COPY, rows)
    assert copy is not None
    np.testing.assert_array_equal(copy, embedding.numpy()[rows])
    assert draft.copy_of(HEAD_COPY, rows) is None  # its head is no copy


def test_an_eagle3_draft_has_its_own_rope(tmp_path: Path) -> None:
    """Also beside a MiniCPM, whose EAGLE-2 drafts have that of their target."""
    folder = write_draft(tmp_path, eagle3_fields(TARGET, rope_theta=None), eagle3_state(TARGET))
    assert DraftCheckpoint(folder, TARGET).config.rope == RopeConfig()


@pytest.mark.parametrize(
    ("fields", "taps"),
    [
        ({}, (1, 3, 4)),
        ({"eagle_aux_hidden_state_layer_ids": [8, 2, 4]}, (1, 3, 7)),  # into which a state goes
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 7]}}, (0, 3, 7)),  # from which it comes
        ({"eagle_config": {"use_aux_hidden_state": True}, "eagle_aux_hidden_state_layer_ids": []}, (1, 3, 4)),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [1, 4, 8],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 7]},
            },
            (0, 3, 7),
        ),
    ],
)
def test_which_layers_are_read(tmp_path: Path, fields: dict[str, Any], taps: tuple[int, ...]) -> None:
    folder = write_draft(tmp_path, eagle3_fields(TARGET, **fields), eagle3_state(TARGET))
    assert DraftCheckpoint(folder, TARGET).config.taps == taps


def test_five_taps_a_bias_and_a_whole_head(tmp_path: Path) -> None:
    """SGLang's `bias`; without a map the rows are the tokens."""
    state = {**eagle3_state(TARGET, 203, 5), "fc.bias": torch.ones(144)}
    del state["d2t"], state["t2d"]
    fields = eagle3_fields(TARGET, None, bias=True, eagle_aux_hidden_state_layer_ids=[1, 2, 4, 6, 8])
    draft = DraftCheckpoint(write_draft(tmp_path, fields, state), TARGET)
    assert draft.config.taps == (0, 1, 3, 5, 7) and draft.config.fc_bias and draft.config.head_rows == 203
    assert draft.token_ids is not None and draft.token_ids.tolist() == [*range(203)]
    check(draft, state)


def test_eagle3_in_4_bits(tmp_path: Path) -> None:
    target = minicpm_target(num_hidden_layers=8, hidden_size=128, intermediate_size=192)
    stored = eagle3_state(target)
    meant = dict(stored)
    for seed, (name, each) in enumerate(eagle3_state(target).items()):
        if each.ndim == 2 and name != "lm_head.weight":
            truth = draw(*each.shape, 64, True, seed)
            meant[name] = torch.tensor(truth.weights)
            for kind, values in pack_gptq(truth).items():
                stored[f"{name.removesuffix('.weight')}.{kind}"] = torch.tensor(np.ascontiguousarray(values))
            del stored[name]
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq"}
    folder = write_draft(tmp_path, eagle3_fields(target, quantization_config=entry), stored)
    draft = DraftCheckpoint(folder, target)
    for info in draft.tensors:
        values = draft.read(info.name)
        if isinstance(values, QuantizedMatrix):
            values = values.dequantize()
        np.testing.assert_array_equal(values, floats(meant, public_name("eagle3", info.name)))
    assert draft.config.joins_in_attention and isinstance(draft.read("fc.weight"), QuantizedMatrix)


@pytest.mark.parametrize("as_run", [False, True])
def test_the_layer_that_training_leaves(tmp_path: Path, as_run: bool) -> None:
    """Alone with a config.json, or in a run's folder beside the model that it belongs to."""
    state, fields = multi_token_state(TARGET), draft_fields(TARGET, num_hidden_layers=8)
    folder = write_draft(tmp_path, fields, state, name=MULTI_TOKEN)
    if as_run:
        (tmp_path / "model").mkdir()
        (tmp_path / "config.json").rename(tmp_path / "model" / "config.json")
        (tmp_path / "config.json").write_text('{"seed": 0}')  # the run's own
        (tmp_path / "model" / "tokenizer.json").write_text("{}")
    draft = DraftCheckpoint(folder, TARGET)
    assert draft.config == draft_shape(TARGET, "mtp")
    check(draft, state)
    assert draft.token_ids is None and list(draft.tokenizer_files) == (["tokenizer.json"] if as_run else [])
    without = minicpm_target(num_hidden_layers=8, layers_without_rope=(0, 4))
    assert DraftCheckpoint(folder, without).config.rope is None
    with pytest.raises(EdgeError, match="whose num_hidden_layers is 8, not 9 as here"):
        DraftCheckpoint(folder, minicpm_target(num_hidden_layers=9))


def added(name: str, *shape: int, dtype: torch.dtype = torch.float16) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape, dtype=dtype)})


def changed(name: str, at: int, by: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name][at] += by

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("d2t"), "no tensor 'd2t', which says which tokens the 40 rows"),
        (added("d2t", 39, dtype=torch.int64), "'d2t' of .* has shape 39, but its configuration asks for 40"),
        (added("d2t", 40), "'d2t' of .* has no whole numbers"),
        (added("t2d", 204, dtype=torch.bool), "'t2d' of .* has shape 204, .* asks for 203"),
        (changed("d2t", 39, 203), "'d2t' of .* holds the token id .*, which lies outside"),
        (
            lambda state: state["d2t"].copy_(-torch.arange(40)),
            "'d2t' of .* holds the token id 0 more than once",
        ),
        (added("t2d", 203, dtype=torch.bool), "'d2t' and 't2d' of .* name different tokens"),
        (lambda state: state.pop("lm_head.weight"), "has no tensor 'lm_head.weight'"),
        (lambda state: state.pop("norm.weight"), "has no tensor 'norm.weight'"),
        (
            lambda state: state.pop("midlayer.hidden_norm.weight"),
            "has no tensor 'midlayer.hidden_norm.weight'",
        ),
        (added("lm_head.weight", 203, 144), "'lm_head.weight' .* has shape 203x144, .* asks for 40x144"),
        (added("fc.weight", 144, 288), "'fc.weight' .* has shape 144x288, .* asks for 144x432"),
        (
            added("midlayer.self_attn.k_proj.weight", 64, 144),
            "'midlayer.self_attn.k_proj.weight' .* has shape 64x144, .* asks for 64x288",
        ),
        (added("midlayer.self_attn.q_proj.bias", 128), "'midlayer.self_attn.q_proj.bias', which no EAGLE-3"),
        (added("token_id_remap", 40), "a tensor 'token_id_remap', which no EAGLE-3 draft of this shape"),
        (added("midlayers.1.mlp.up_proj.weight", 272, 144), "'midlayers.1.mlp.up_proj.weight', which no EAG"),
        (added("layers.0.mlp.up_proj.weight", 272, 144), "has 'layers.0.mlp.up_proj.weight' twice"),
    ],
)
def test_tensors_of_eagle3_that_are_refused(
    tmp_path: Path, change: Callable[[State], Any], says: str
) -> None:
    state = eagle3_state(TARGET)
    change(state)
    folder = write_draft(tmp_path, eagle3_fields(TARGET), state)
    with pytest.raises(EdgeError, match=says) as caught:
        DraftCheckpoint(folder, TARGET).token_ids  # noqa: B018
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"norm_before_residual": True},
            "a variant of EAGLE-3 that can't be run .field 'norm_before_residual'",
        ),
        ({"norm_output": True}, "field 'norm_output'"),
        ({"logit_scale": 0.5}, "'logit_scale' of config.json is 0.5"),
        ({"tie_word_embeddings": True}, "field 'tie_word_embeddings'"),
        (
            {"eagle_config": {"use_aux_hidden_state": False}},
            "field 'eagle_config.use_aux_hidden_state': False",
        ),
        ({"eagle_config": 3}, "'eagle_config' of .* must be an object, not 3"),
        ({"target_hidden_size": 288}, "whose hidden_size is 288, with one of its own of 144"),
        ({"hidden_size": 160}, "whose hidden_size is 144, with one of its own of 160"),
        ({"num_hidden_layers": 2}, "num_hidden_layers of a draft of the kind 'eagle3' is 1, not 2"),
        ({"draft_vocab_size": 204}, "head_rows is 204, more than the 203 tokens"),
        (
            {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]},
            "layer_ids' of .* is .0, 1, 2.: no list of different",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}, "no list of different layers of a model with 8"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 2]}, "no list of different layers"),
        ({"eagle_aux_hidden_state_layer_ids": "2"}, "no list of different layers"),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [1, 4, 8],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 4, 7]},
            },
            "names other layers in 'eagle_aux_hidden_state_layer_ids'",
        ),
        ({"scale_emb": 3.0}, "whose scale_emb is 3.0, not 12.0 as here"),
    ],
)
def test_configs_of_eagle3_that_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    folder = write_draft(tmp_path, eagle3_fields(TARGET, **fields), eagle3_state(TARGET))
    with pytest.raises(EdgeError, match=says) as caught:
        DraftCheckpoint(folder, TARGET)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_layers_of_training_that_are_refused(tmp_path: Path) -> None:
    fields, state = draft_fields(TARGET, num_hidden_layers=8), multi_token_state(TARGET)
    for change, says in (
        (lambda state: state.pop("hnorm.weight"), "has no tensor 'hnorm.weight'"),
        (lambda state: state.pop("norm.weight"), "has no tensor 'norm.weight'"),
        (added("eh_proj.bias", 144), "a tensor 'eh_proj.bias', which no multi-token layer"),
        (added("eh_proj.weight", 144, 432), "'eh_proj.weight' .* has shape 144x432, .* asks for 144x288"),
        (added("layer.self_attn.q_norm.weight", 32), "'layer.self_attn.q_norm.weight', which no multi-token"),
        (added("model.layers.8.enorm.weight", 144), "'model.layers.8.enorm.weight', which no multi-token"),
    ):
        other = dict(state)
        change(other)
        with pytest.raises(EdgeError, match=says):
            DraftCheckpoint(write_draft(tmp_path, fields, other), TARGET)
    write_draft(tmp_path, {**fields, "draft_vocab_size": 40}, state)
    with pytest.raises(
        EdgeError, match=r"that of an EAGLE-3 draft .field 'draft_vocab_size'., but the weights"
    ):
        DraftCheckpoint(tmp_path, TARGET)
    bare = write_draft(tmp_path / "bare", fields, state, name=MULTI_TOKEN)
    (bare / "config.json").unlink()
    with pytest.raises(EdgeError, match=r"has no config\.json"):
        DraftCheckpoint(bare, TARGET)
    (bare / "model").mkdir()
    (bare / "model" / "config.json").write_text(json.dumps({**fields, "scale_depth": 1.0}))
    with pytest.raises(
        EdgeError, match=r"model/config\.json' is a draft for a model whose scale_depth is 1\.0"
    ):
        DraftCheckpoint(bare, TARGET)
