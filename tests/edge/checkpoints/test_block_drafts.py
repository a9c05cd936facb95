"""Public block drafts, DSpark and DFlash, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.draft import EMBEDDING_COPY, HEAD_COPY, DraftCheckpoint, is_draft_checkpoint
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import RopeConfig
from edge.config.draft import draft_tensors
from edge.config.draft_names import public_name
from edge.errors import EdgeError
from tests.drafts import (
    State,
    block_fields,
    block_state,
    eagle3_state,
    flash_fields,
    floats,
    llama_target,
    minicpm_target,
    write_draft,
)

TARGET, LLAMA = minicpm_target(num_hidden_layers=8), llama_target(num_hidden_layers=8)


def check(draft: DraftCheckpoint, state: State) -> None:
    """Everything is read, and as the file has it; the confidence head's only row as a vector."""
    assert [info.name for info in draft.tensors] == list(draft_tensors(draft.config))
    for info in draft.tensors:
        wanted = floats(state, public_name("dspark", info.name)).reshape(info.shape)
        np.testing.assert_array_equal(draft.read_float32(info.name), wanted)
        np.testing.assert_array_equal(draft.read(info.name), wanted)


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize("target", [TARGET, LLAMA], ids=["MiniCPM", "Llama"])
def test_dspark(tmp_path: Path, torch_file: bool, target: Any) -> None:
    state = block_state(target)
    copies = {name: torch.randn(target.vocab_size, 144) for name in (EMBEDDING_COPY, HEAD_COPY)}
    folder = write_draft(tmp_path, block_fields(target), {**state, **copies}, torch_file=torch_file)
    draft = DraftCheckpoint(folder, target)
    assert draft.config == draft_shape(
        target,
        "dspark",
        num_hidden_layers=2,
        taps=(1, 3, 6),
        block_size=5,
        mask_token=77,
        markov_rank=24,
        rope=RopeConfig(theta=5e6),
    )
    check(draft, state)
    assert draft.token_ids is None and is_draft_checkpoint(folder)
    rows = np.array([5, 0])
    for name, values in copies.items():
        copy = draft.copy_of(name, rows)
        assert copy is not None
        np.testing.assert_array_equal(copy, values.numpy()[rows])


def test_dflash(tmp_path: Path) -> None:
    """The anchor's own row tells nothing, and nothing but the target's head tells tokens."""
    state = block_state(TARGET, rank=0)
    draft = DraftCheckpoint(write_draft(tmp_path, flash_fields(TARGET), state), TARGET)
    config = draft.config
    assert (config.kind, config.block_size, config.guessed_rows, config.mask_token) == ("dspark", 16, 15, 77)
    assert (config.anchor_tells, config.markov_rank, config.confidence) == (False, 0, False)
    assert config.taps == (1, 3, 6)
    check(draft, state)


def test_a_head_of_its_own(tmp_path: Path) -> None:
    """Over some tokens, which the Markov head adds to; the tokens before are all."""
    state = block_state(TARGET)
    state |= {name: each for name, each in eagle3_state(TARGET).items() if name in ("d2t", "t2d")}
    state["lm_head.weight"] = torch.randn(40, 144).bfloat16()
    after = "markov_head.markov_w2.weight"
    state[after] = state[after][:40].clone()
    fields = block_fields(TARGET, draft_vocab_size=40)
    draft = DraftCheckpoint(write_draft(tmp_path, fields, state), TARGET)
    assert (draft.config.head_rows, draft.config.trained_head, draft.config.logit_scale) == (40, True, 1.0)
    assert draft.token_ids is not None
    assert draft.token_ids.tolist() == (state["d2t"] + torch.arange(40)).tolist()
    assert draft.copy_of(HEAD_COPY, np.array([0])) is None
    check(draft, state)
    del state["d2t"]
    with pytest.raises(EdgeError, match="has no tensor 'd2t'"):
        DraftCheckpoint(write_draft(tmp_path, fields, state), TARGET).token_ids  # noqa: B018


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"enable_confidence_head": None, "sample_from_anchor": None, "num_target_layers": None}, {}),
        ({"draft_vocab_size": 203}, {}),
        ({"target_layer_ids": None, "dspark_config": {"target_layer_ids": [1, 3, 6]}}, {}),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 512}, {"window": 512}),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 4096}, {}),
        ({"sliding_window": 512}, {}),  # of no layer
        ({"scale_depth": 0.8}, {}),
        ({"is_causal": False, "causal": False}, {}),
    ],
    ids=str,
)
def test_what_a_config_may_say(tmp_path: Path, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    plain = DraftCheckpoint(write_draft(tmp_path / "a", block_fields(TARGET), block_state(TARGET)), TARGET)
    folder = write_draft(tmp_path / "b", block_fields(TARGET, **fields), block_state(TARGET))
    assert DraftCheckpoint(folder, TARGET).config == replace(plain.config, **wanted)


def added(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("fc.weight"), "has no tensor 'fc.weight'"),
        (lambda state: state.pop("norm.weight"), "has no tensor 'norm.weight'"),
        (lambda state: state.pop("layers.1.self_attn.k_norm.weight"), "no tensor 'layers.1.self_attn.k_norm"),
        (lambda state: state.pop("markov_head.markov_w2.weight"), "no tensor 'markov_head.markov_w2.weight'"),
        (lambda state: state.pop("confidence_head.proj.bias"), "no tensor 'confidence_head.proj.bias'"),
        (added("fc.bias", 144), "fc_bias of a draft of the kind 'dspark' is False"),
        (added("markov_head.gate_proj.weight", 24, 168), "'markov_head.gate_proj.weight', which no DSpark"),
        (added("d2t", 40), "a tensor 'd2t', which no DSpark or DFlash draft of this shape has"),
        (added("fc.weight", 144, 288), "'fc.weight' .* has shape 144x288, but .* asks for 144x432"),
        (added("hidden_norm.weight", 432), "'hidden_norm.weight' .* has shape 432, .* asks for 144"),
        (added("confidence_head.proj.weight", 2, 168), "shape 2x168, but one row was expected"),
        (added("confidence_head.proj.weight", 1, 144), "has shape 144, but its configuration asks for 168"),
        (added("markov_head.markov_w1.weight", 100, 24), "has shape 100x24, .* asks for 203x24"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[State], Any], says: str) -> None:
    state = block_state(TARGET)
    change(state)
    with pytest.raises(EdgeError, match=says) as caught:
        DraftCheckpoint(write_draft(tmp_path, block_fields(TARGET), state), TARGET)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"markov_head_type": "rnn"}, "variant of a block draft that can't be run .field 'markov_head_type'"),
        ({"attention_value_scale": 0.5}, "field 'attention_value_scale': 0.5"),
        ({"causal": True}, "field 'causal': True"),
        ({"is_causal": True}, "'is_causal' of config.json is True"),
        ({"confidence_head_with_markov": False}, "field 'confidence_head_with_markov': False"),
        ({"sample_from_anchor": False}, "field 'sample_from_anchor': False"),
        ({"draft_vocab_size": 204}, "head_rows is 204, more than the 203 tokens"),
        ({"enable_confidence_head": False}, "a tensor 'confidence_head.proj.bias', which no DSpark"),
        ({"dspark_config": 3}, "'dspark_config' of .* must be an object, not 3"),
        ({"target_layer_ids": [3, 1]}, "'target_layer_ids' of .* no ascending list of layers"),
        ({"target_layer_ids": [-1, 1, 3]}, "no ascending list of layers"),
        ({"target_layer_ids": [1, 3, 8]}, "no ascending list of layers of a model with 8"),
        ({"target_layer_ids": None}, "no ascending list of layers"),
        ({"num_target_layers": 9}, "whose num_hidden_layers is 9, not 8 as here"),
        ({"mask_token_id": 203}, "mask_token of a draft must be a whole number up to 202, not 203"),
        ({"block_size": 0}, "block_size must be a positive"),
        ({"block_size": 65}, "block_size is 65, but a block has 1 to 64 rows"),
        ({"block_size": None}, "block_size"),
        ({"mask_token_id": None}, "mask_token_id"),
        ({"dspark_block_size": 5}, "a model with a DSpark draft inside it .field 'dspark_block_size'"),
        ({"architectures": ["DFlash2DraftModel"]}, "a DFlash 2 draft .field 'architectures'"),
        ({"speculators_model_type": "dspark"}, "in the format of speculators"),
        ({"hidden_act": "gelu"}, "'hidden_act' of config.json is 'gelu'"),
        ({"hidden_size": 160}, "whose hidden_size is 160, not 144 as here"),
        ({"vocab_size": 204}, "whose vocab_size is 204, not 203 as here"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    folder = write_draft(tmp_path, block_fields(TARGET, **fields), block_state(TARGET))
    with pytest.raises(EdgeError, match=says) as caught:
        DraftCheckpoint(folder, TARGET)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
