"""The precedence of settings, and the refusal of unknown names and wrong values."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from edge.engine.settings import (
    LOCAL_CHAT,
    SETTING_NAMES,
    GenerationSettings,
    SamplingParams,
    merge_settings,
    overlay,
)
from edge.errors import EdgeError

FLOAT32_MAX = 3.4028234663852886e38


OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def test_without_any_settings_a_model_answers_as_local_chats_do():
    wanted = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    assert merge_settings() == merge_settings({}) == GenerationSettings(wanted)
    assert vars(wanted) == {**vars(SamplingParams()), **LOCAL_CHAT}
    assert not wanted.has_penalties and {name: vars(SamplingParams())[name] for name in OFF} == OFF


@pytest.mark.parametrize(
    "file",
    [
        {"eos_token_id": 2, "max_new_tokens": 9},
        {"repetition_penalty": 1.1},
        {"stop_strings": ["x"]},
        {"do_sample": True},
    ],
)
def test_settings_that_are_not_about_sampling_leave_the_local_ones(file):
    found = vars(merge_settings(file).sampling)
    assert {name: found[name] for name in LOCAL_CHAT} == LOCAL_CHAT
    assert found["repetition_penalty"] == file.get("repetition_penalty", 1)


@pytest.mark.parametrize(
    "file",
    [
        {"temperature": 0.2, "top_p": 0.9, "do_sample": True},
        {"temperature": 0.6},
        {"top_k": 64},
        {"top_p": 1.0},  # off, in so many words
        {"min_p": 0.1},
        {"typical_p": 0.9},
    ],
)
def test_a_model_that_says_how_to_sample_is_taken_at_its_word(file):
    found = vars(merge_settings(file).sampling)
    assert {name: found[name] for name in OFF} == {**OFF, **{k: v for k, v in file.items() if k in OFF}}


def test_who_gives_one_value_keeps_the_others():
    """Of whichever source: as in llama.cpp, a temperature switches no filter off."""
    found = merge_settings({}, None, {"temperature": 0.3}).sampling
    assert found == SamplingParams(**{**LOCAL_CHAT, "temperature": 0.3})
    found = merge_settings({"temperature": 0.2, "top_p": 0.9}, {"top_p": 1.0}, {"temperature": 0.3}).sampling
    assert found == SamplingParams(temperature=0.3)


def test_greedy_stays_greedy_without_any_filter():
    """And where only the model says so, the local settings hold once somebody asks for sampling."""
    greedy = SamplingParams(temperature=0)
    for file in ({"do_sample": False}, {"temperature": 0.0}, {"temperature": 0.0, "do_sample": False}):
        assert merge_settings(file).sampling == greedy
        assert merge_settings(file, {"do_sample": True}).sampling == SamplingParams(**LOCAL_CHAT)
    for source in ({"temperature": 0}, {"do_sample": False}):
        assert merge_settings({}, None, source).sampling == greedy


def test_sampling_in_words():
    assert merge_settings().sampling.words == "temperature 0.8, top_k 40, top_p 0.95, min_p 0.05"
    assert SamplingParams().words == "temperature 1"
    assert SamplingParams(temperature=0, top_k=3, presence_penalty=0.5).words == (
        "greedy, presence_penalty 0.5"
    )


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


def test_do_sample_and_temperature_undo_each_other_by_the_strength_of_their_source():
    """Sampling at transformers' word: the file's temperature holds as soon as somebody asks for sampling."""
    file = {"do_sample": False, "temperature": 5.0}
    assert merge_settings(file).sampling.temperature == 0
    assert merge_settings(file, {"do_sample": True}).sampling.temperature == 5.0
    assert merge_settings(file, None, {"temperature": 0.5}).sampling.temperature == 0.5
    assert merge_settings(file, {"temperature": 0.5}, {"do_sample": False}).sampling.temperature == 0
    assert merge_settings({}, {"do_sample": False}, {"temperature": 0.5}).sampling.temperature == 0.5


@pytest.mark.parametrize("source", ["request", "flags"])
@pytest.mark.parametrize(("sample", "temperature"), [(False, 0.7), (True, 0)])
def test_one_source_that_contradicts_itself_is_refused_naming_both(source, sample, temperature):
    with pytest.raises(EdgeError, match=rf"do_sample {str(sample).lower()} and temperature {temperature}"):
        merge_settings(**{source: {"do_sample": sample, "temperature": temperature}})
    agreeing = merge_settings(**{source: {"do_sample": sample, "temperature": 0.7 if sample else 0}})
    assert agreeing.sampling.temperature == (0.7 if sample else 0)


def test_overlaid_settings_keep_no_contradiction():
    assert overlay({"do_sample": False}, {"temperature": 0.5}) == {"temperature": 0.5}
    assert overlay({"temperature": 0.5, "top_k": 3}, {"do_sample": False}) == {"top_k": 3, "do_sample": False}
    assert overlay({"temperature": 0.5}, {"do_sample": True}) == {"temperature": 0.5, "do_sample": True}
    assert overlay({"temperature": 0, "top_k": 3}, {"do_sample": True, "top_k": None}) == {
        "top_k": 3,
        "do_sample": True,
    }


def test_a_wrong_value_of_the_file_is_named_with_it_whatever_is_stronger():
    with pytest.raises(EdgeError, match=r"'top_k' in generation_config\.json"):
        merge_settings({"top_k": 1.5}, None, {"top_k": 3})


def test_stop_strings_of_the_file_count_beside_given_ones():
    assert merge_settings({"stop_strings": ["###"]}).stop == ("###",)
    assert merge_settings({"stop_strings": "###"}, None, {"stop": ["x", "###"]}).stop == ("###", "x")


def test_end_tokens_beside_the_models_own():
    assert merge_settings().eos == ()
    assert merge_settings(flags={"eos": "<|im_end|>"}).eos == ("<|im_end|>",)
    assert merge_settings(flags={"eos": [7, "<x>"]}).eos == ("7", "<x>")
    for wrong in ("", [""], 1.5, [True], {"a": 1}):
        with pytest.raises(EdgeError, match="eos must be"):
            merge_settings(flags={"eos": wrong})


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
        ({"do_sample": "no"}, "do_sample"),
        ({"top_p": 3}, "top_p"),
    ],
)
def test_wrong_values_are_named(settings, word):
    with pytest.raises(EdgeError, match=word):
        merge_settings(flags=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0, "min_p": 0, "typical_p": 0},
        {"top_p": 1, "min_p": 1, "typical_p": 1},
        {"temperature": 0, "top_k": 0, "seed": 0, "logprobs": 0, "penalty_window": 0},
        {"presence_penalty": FLOAT32_MAX, "frequency_penalty": -FLOAT32_MAX},
        {"logit_bias": {0: -math.inf, 2**31 - 1: FLOAT32_MAX}},
        {"logit_bias": dict.fromkeys(range(4096), 1.0)},
    ],
)
def test_the_borders_of_the_ranges_belong_to_them(settings):
    sampling = merge_settings(flags=settings).sampling
    assert {name: getattr(sampling, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"logit_bias": {2**31: 0.0}}, "2147483648"),
        ({"logit_bias": dict.fromkeys(range(4097), 1.0)}, "at most 4096 token ids, got 4097"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
        ({"presence_penalty": math.nextafter(FLOAT32_MAX, math.inf)}, "presence_penalty"),
        ({"typical_p": 1.001}, "typical_p"),
        ({"min_p": -0.001}, "min_p"),
    ],
)
def test_just_beyond_the_ranges_is_refused(settings, word):
    with pytest.raises(EdgeError, match=word):
        merge_settings(flags=settings)


def test_the_first_token_may_end_an_answer_and_one_token_may_be_its_length():
    settings = merge_settings(flags={"eos_token_id": 0, "max_new_tokens": 1, "eos": 0})
    assert (settings.eos_token_ids, settings.max_new_tokens, settings.eos) == ((0,), 1, ("0",))


@pytest.mark.parametrize("penalty", [{"frequency_penalty": -0.5}, {"presence_penalty": -0.5}])
def test_a_penalty_below_zero_is_one(penalty):
    assert SamplingParams(**penalty).has_penalties and not SamplingParams().has_penalties
