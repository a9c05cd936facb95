"""The last values that are read, and the first that are refused."""

from __future__ import annotations

import sys

import pytest

from edge.config import RopeConfig, SparseConfig
from edge.config.fields import Fields, head_size, listed, refuse_two, shown
from edge.config.generation import read_generation_config
from edge.config.rope import longrope_scale
from edge.config.rope_entry import override_rope, read_rope
from edge.errors import ConfigError


def test_numbers_up_to_the_border():
    source = Fields({"most": 2**63 - 1, "least": 1 - 2**63, "whole": 3.0, "float": sys.float_info.max}, "it")
    assert (source.integer("most"), source.integer("least"), source.integer("whole")) == (
        2**63 - 1,
        1 - 2**63,
        3,
    )
    assert source.number("float") == sys.float_info.max
    for value in (2**63, -(2**63), 3.5, True, "3"):
        with pytest.raises(ConfigError, match="'x' of it must be an integer"):
            Fields({"x": value}, "it").integer("x")
    for value in (10**309, float("inf"), float("nan"), False, "3"):
        with pytest.raises(ConfigError, match="'x' of it must be a number"):
            Fields({"x": value}, "it").number("x")


def test_defaults_and_names():
    source = Fields({"p.other": 5, "p.null": None}, "it", "p.", {"mine": "other"}, {"null": 7, "no": 8})
    assert source.key("mine") == "p.other"
    assert (
        source.integer("mine", 1),
        source.integer("null", 1),
        source.integer("no"),
        source.integer("z", 9),
    ) == (
        *(5, 7, 8),
        9,
    )
    assert source.boolean("z", True) is True and source.boolean("z", False) is False
    assert Fields({"x": False}, "it").boolean("x", True) is False
    assert Fields({"x": 0}, "it").integer("x", 5) == 0 and Fields({"x": 0}, "it").optional_number("x") == 0
    with pytest.raises(ConfigError, match=r"it lacks the required field 'p\.z'"):
        source.integer("z")
    assert Fields({"x": [3, None, -1, 0, 3.0]}, "it").ids("x") == (3, 0)


def test_values_in_sentences():
    assert shown("x" * 58) == repr("x" * 58) and shown("x" * 59) == f"'{'x' * 56}..."
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
    refuse_two("it", {"a": None, "b": 0, "c": 0})
    with pytest.raises(ConfigError, match="'b' is 0, but 'c' is 1"):
        refuse_two("it", {"a": None, "b": 0, "c": 1})


def test_sizes_of_heads():
    assert (head_size(None, 12, 3), head_size(7, 12, 5)) == (4, 7)
    with pytest.raises(ConfigError, match=r"hidden_size \(12\) is not a multiple"):
        head_size(None, 12, 5)
    with pytest.raises(ConfigError, match="must be a positive number, not 0"):
        head_size(7, 12, 0)


def test_rope_up_to_the_border():
    assert RopeConfig(theta=1.001).theta == 1.001
    llama3 = {"type": "llama3", "factor": 2.0, "original_max_position_embeddings": 2}
    assert RopeConfig(**llama3, beta_fast=1.1, beta_slow=1.0).beta_fast == 1.1
    for changes, name in (
        ({"theta": 1}, "theta must be above 1"),
        ({"type": "yarn", "original_max_position_embeddings": 1}, "embeddings must be above 1"),
        ({**llama3, "beta_fast": 1.0}, "must be above low_freq_factor"),
    ):
        with pytest.raises(ConfigError, match=name):
            RopeConfig(**changes)
    assert (longrope_scale(4096, 4096), longrope_scale(4096, 2048)) == (1, 1)
    assert longrope_scale(16, 256) == pytest.approx(2**0.5)  # sqrt(1 + ln 16 / ln 16)


def test_entries_that_leave_something_out():
    yarn = read_rope({"rope_type": "yarn", "original_max_position_embeddings": 100}, "it", 5e4, 400)
    assert (yarn.factor, yarn.theta, yarn.beta_fast, yarn.beta_slow, yarn.truncate) == (4, 5e4, 32, 1, True)
    assert (
        read_rope({"rope_type": "yarn", "factor": 2.0}, "it", 1e4, 400).original_max_position_embeddings
        == 400
    )
    given = {"rope_theta": 9.0, "beta_fast": 8, "beta_slow": 2, "truncate": False, "mscale": 0.5}
    full = read_rope({"rope_type": "yarn", "factor": 2.0, **given}, "it", 1e4, 400)
    assert (full.theta, full.beta_fast, full.beta_slow, full.truncate, full.mscale) == (9, 8, 2, False, 0.5)
    for kind in ("linear", "dynamic"):
        with pytest.raises(ConfigError, match=f"rope_type {kind} in it lacks the required field 'factor'"):
            read_rope({"rope_type": kind}, "it", 1e4, 400)
    long = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    scaled = read_rope({**long, "factor": 16.0, "original_max_position_embeddings": 16}, "it", 1e4, 64)
    assert scaled.attention_factor == pytest.approx(2**0.5) and scaled.factor == 1
    own = {"factor": 16.0, "attention_factor": 1.25, "original_max_position_embeddings": 16}
    assert read_rope({**long, **own}, "it", 1e4, 64).attention_factor == 1.25


def test_an_override_stretches_what_was_trained(tiny_config):
    """512 tokens; what is asked for by name counts more than the factor."""
    linear = override_rope(tiny_config, {"rope_type": "linear", "factor": 2.5})
    assert (linear.max_position_embeddings, linear.rope.factor) == (1280, 2.5)
    asked = {"rope_type": "linear", "factor": 2.5, "max_position_embeddings": 600}
    assert override_rope(tiny_config, asked).max_position_embeddings == 600
    assert override_rope(tiny_config, {"max_position_embeddings": 300}).max_position_embeddings == 300
    for kind in ("linear", "yarn", "dynamic"):  # factor times the length that the same entry names
        named = {"rope_type": kind, "factor": 4, "original_max_position_embeddings": 64}
        assert override_rope(tiny_config, named).max_position_embeddings == 256
    same = override_rope(tiny_config, {"rope_theta": 5e5})
    assert (same.max_position_embeddings, same.rope.theta, same.rope.type) == (512, 5e5, "default")


def test_sparse_constants_up_to_the_border():
    assert SparseConfig(init_blocks=64, topk=64).topk == 64
    assert [SparseConfig(dense_len=length).dense_len for length in (-1, 0)] == [-1, 0]
    assert SparseConfig(init_blocks=0).init_blocks == 0


@pytest.mark.parametrize(
    ("given", "notes"),
    [
        ({"max_length": 64, "max_new_tokens": 64}, 0),
        ({"max_length": 65, "max_new_tokens": 64}, 1),
        ({"max_length": 65}, 0),
        ({"do_sample": False, "temperature": 0}, 0),
        ({"do_sample": True, "temperature": 0.1}, 0),
        ({"temperature": 5.0}, 0),
        ({"num_beams": 1}, 0),
        ({"num_beams": 2}, 1),
        ({"suppress_tokens": []}, 0),
        ({"suppress_tokens": [1]}, 1),
    ],
)
def test_notes_only_where_something_is_settled(given, notes):
    assert len(read_generation_config(given).notes) == notes


def test_settings_at_the_border():
    found = read_generation_config(
        {"max_new_tokens": 1, "min_p": 1, "top_p": 0.999, "repetition_penalty": 0.001}
    )
    assert found.settings == {"max_new_tokens": 1, "min_p": 1, "top_p": 0.999, "repetition_penalty": 0.001}
    with pytest.raises(ConfigError, match=r"'top_k' in f must be .*, not '(x{56})\.\.\.; correct"):
        read_generation_config({"top_k": "x" * 59}, "f")
