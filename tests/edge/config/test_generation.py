"""generation_config.json: one meaning for each value, notes about contradictions, refusals by file and key.

What a value means is transformers' (`GenerationMixin._get_logits_processor`, `GenerationConfig.validate`); -1
is how vLLM and llama.cpp write "off".
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.config.generation import read_generation_config
from edge.config.gguf import sampling_to_gguf
from edge.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_k": None}, {}),
        ({"top_k": 2**31}, {"top_k": 2**31}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"top_p": -1}, {"top_p": 1.0}),
        ({"top_p": 0}, {"top_p": 0}),
        ({"typical_p": 1.0}, {"typical_p": 1.0}),
        ({"min_p": -1}, {"min_p": 0.0}),
        ({"min_p": 0.05}, {"min_p": 0.05}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"repetition_penalty": 1}, {"repetition_penalty": 1}),
        ({"max_new_tokens": -1}, {}),
        ({"max_new_tokens": 0}, {}),
        ({"max_new_tokens": 64.0}, {"max_new_tokens": 64}),
        ({"do_sample": 0}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"do_sample": None}, {}),
        ({"stop_strings": "###"}, {"stop": ("###",)}),
        ({"stop_strings": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"transformers_version": "5.0", "cache_implementation": "static", "max_length": 4096}, {}),
    ],
)
def test_values_that_have_a_clear_meaning(given: dict[str, Any], meant: dict[str, Any]) -> None:
    found = read_generation_config(given)
    assert found.settings == meant and found.notes == ()
    assert {name: type(value) for name, value in found.settings.items()} == {
        name: type(value) for name, value in meant.items()
    }


@pytest.mark.parametrize(
    ("given", "ids"),
    [(-1, ()), (None, ()), (2, (2,)), (2.0, (2,)), ([2, -1, 2, 5], (2, 5)), ([], ()), (0, (0,))],
)
def test_end_tokens(given: Any, ids: tuple[int, ...]) -> None:
    assert read_generation_config({"eos_token_id": given}).eos_token_ids == ids


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("temperature", [-1, -0.5, "0.7", True, 1e39, float("nan"), [1]], "a number of 0 or more"),
        ("top_k", [50.5, "50", float("inf"), 10**400, {}], "a whole number of 0 or more"),
        ("top_p", [-0.5, "1", None.__class__], "a number from 0 to 1"),
        ("min_p", [1.5, False], "a number from 0 to 1"),
        ("repetition_penalty", [0, -1.2], "a number above 0"),
        ("max_new_tokens", [1.5, "many"], "a whole number of 1 or more"),
        ("do_sample", ["true", 2, []], "true or false"),
        ("eos_token_id", ["2", [2, "x"], 2.5, True, {"a": 1}], "a token id or a list of them"),
        ("stop_strings", [5, ["a", 5]], "a text or a list of them"),
    ],
)
def test_what_has_no_clear_meaning_names_file_and_key(name: str, values: list[Any], wanted: str) -> None:
    for value in values:
        with pytest.raises(ConfigError) as caught:
            read_generation_config({name: value})
        sentence = str(caught.value)
        assert f"'{name}' in generation_config.json must be {wanted}" in sentence
        assert len(sentence) < 220 and "\n" not in sentence


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"do_sample": False, "temperature": 5.0}, ["do_sample false", "temperature 5", "greedy"]),
        ({"do_sample": False, "top_k": 20, "top_p": 0.8}, ["do_sample false", "top_k 20 and top_p 0.8"]),
        ({"do_sample": False, "min_p": 0.1, "typical_p": 0.9}, ["min_p 0.1 and typical_p 0.9"]),
        ({"do_sample": True, "temperature": 0.0}, ["do_sample true", "temperature 0", "greedy"]),
        ({"max_length": 20, "max_new_tokens": 512}, ["max_length 20", "max_new_tokens 512"]),
        (
            {"num_beams": 4, "no_repeat_ngram_size": 3},
            ["num_beams and no_repeat_ngram_size", "without effect"],
        ),
    ],
)
def test_contradictions_are_said_with_file_and_keys(given: dict[str, Any], words: list[str]) -> None:
    (note,) = read_generation_config(given).notes
    assert all(word in note for word in ["generation_config.json", *words])


def test_what_transformers_writes_by_itself_is_no_contradiction() -> None:
    """The defaults of its GenerationConfig, which older versions wrote out in full."""
    defaults = {
        **{
            "do_sample": False,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "typical_p": 1.0,
            "num_beams": 1,
        },
        **{"min_length": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "bad_words_ids": None},
        **{"num_beam_groups": 1, "diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0},
        **{"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "max_length": 20},
    }
    assert read_generation_config(defaults).notes == ()


def test_any_json_gives_settings_or_a_sentence(json_values: list[Any]) -> None:
    names = [
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "max_new_tokens",
        "do_sample",
        "eos_token_id",
        "max_length",
    ]
    names += ["stop_strings", "num_beams", "bad_words_ids", "repetition_penalty", "typical_p"]
    refused = 0
    for name in names:
        for value in json_values:
            try:
                json.dumps(read_generation_config({name: value, "max_new_tokens": 3}).settings)
            except ConfigError:
                refused += 1
    assert refused > 50


def test_gguf_gets_zeros_and_greedy_decoding() -> None:
    keys = {"temperature": "temp", "top_k": "top_k", "min_p": "min_p"}
    zeros = sampling_to_gguf({"temperature": 0, "top_k": 0, "min_p": 0.0})
    assert zeros == {f"general.sampling.{key}": 0 for key in keys.values()}
    found = sampling_to_gguf({"do_sample": False, "temperature": 5.0, "top_k": -1, "top_p": 0.5})
    assert found == {
        "general.sampling.temp": 0.0,
        "general.sampling.top_k": 0,
        "general.sampling.top_p": 0.5,
    }
