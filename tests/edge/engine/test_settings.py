"""The precedence of settings, and the refusal of unknown names and wrong values."""

from __future__ import annotations

from dataclasses import fields

import pytest

from edge.engine.settings import SETTING_NAMES, GenerationSettings, SamplingParams, merge_settings
from edge.errors import EdgeError


def test_nothing_given_means_the_defaults():
    assert merge_settings() == GenerationSettings(SamplingParams())


def test_flag_beats_request_beats_generation_config():
    config = {"temperature": 0.1, "top_p": 0.2, "top_k": 3}
    settings = merge_settings(config, {"temperature": 0.4, "top_p": 0.5}, {"temperature": 0.6})
    assert (settings.sampling.temperature, settings.sampling.top_p, settings.sampling.top_k) == (0.6, 0.5, 3)


def test_none_counts_as_not_given():
    settings = merge_settings({"temperature": 0.1, "top_k": None}, {"temperature": None}, {"top_k": None})
    assert settings.sampling == SamplingParams(temperature=0.1)


def test_do_sample_false_is_greedy_unless_a_stronger_source_says_otherwise():
    assert merge_settings({"do_sample": False, "top_p": 0.8}).sampling.temperature == 0
    assert merge_settings({"do_sample": True, "temperature": 0.8}).sampling.temperature == 0.8
    assert merge_settings({"do_sample": False}, {"temperature": 0.5}).sampling.temperature == 0.5
    assert merge_settings({"temperature": 0.8}, {"do_sample": False}).sampling.temperature == 0


def test_a_real_generation_config_is_read_and_its_other_keys_are_ignored():
    config = {
        "bos_token_id": 1,
        "do_sample": True,
        "eos_token_id": [2, 73440],
        "pad_token_id": 2,
        "temperature": 0.8,
        "top_p": 0.8,
        "transformers_version": "4.46.1",
    }
    settings = merge_settings(config)
    assert settings.sampling == SamplingParams(temperature=0.8, top_p=0.8)
    assert settings.eos_token_ids is None  # the tokenizer has them, united with all others


@pytest.mark.parametrize("source", ["request", "flags"])
def test_an_unknown_name_is_named(source):
    with pytest.raises(EdgeError, match="'temprature'"):
        merge_settings(**{source: {"temprature": 1}})


def test_every_sampling_parameter_can_be_set():
    assert {f.name for f in fields(SamplingParams)} <= set(SETTING_NAMES)
    assert merge_settings(flags={"penalty_window": 64, "seed": 5}).sampling.penalty_window == 64


def test_stop_and_eos_take_one_or_several():
    assert merge_settings(flags={"stop": "x", "eos_token_id": 3}).stop == ("x",)
    assert merge_settings(flags={"stop": ["x", "yz"]}).stop == ("x", "yz")
    assert merge_settings(flags={"eos_token_id": 3}).eos_token_ids == (3,)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.0}, "max_new_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [-1]}, "eos_token_id"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
        ({"top_p": 3}, "top_p"),
    ],
)
def test_wrong_values_are_named(settings, word):
    with pytest.raises(EdgeError, match=word):
        merge_settings(flags=settings)
