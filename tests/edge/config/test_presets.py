"""Presets: the sizes of published networks, and the contexts of those."""

from __future__ import annotations

from math import prod

import pytest

from edge.config.presets import CONTEXT, PRESETS, preset
from edge.config.tensors import expected_tensors
from edge.errors import ConfigError

PARAMETERS = {
    "minicpm5-1b": 1_080_632_832,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "smollm3-3b": 3_075_098_624,
    "phi-4-mini": 3_836_021_760,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "smollm2-135m": 134_515_008,
    "minicpm4-0.5b": 433_873_920,
}
"""As their authors publish them: every size of the network, biases and norms of q and k are right."""
ROUGHLY = {
    "minicpm4-8b": 8.19e9,
    "minicpm4.1-8b": 8.19e9,
    "minicpm5-2b": 2.52e9,
    "minicpm-1.2b": 1.36e9,
    "minicpm-2.4b": 2.72e9,
    "minicpm-moe-8x2b": 13.87e9,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_sizes(name: str) -> None:
    found = sum(map(prod, expected_tensors(preset(name)).values()))
    assert found == (PARAMETERS[name] if name in PARAMETERS else pytest.approx(ROUGHLY[name], rel=0.004))


def test_contexts() -> None:
    """Of the older ones as long as one may want to measure, of the others their own."""
    assert {preset(name).longest_context for name in ("minicpm4-8b", "minicpm-2.4b")} == {CONTEXT}
    longrope = preset("minicpm4.1-8b").rope.original_max_position_embeddings
    assert preset("minicpm4.1-8b").longest_context == longrope == 65536
    found = {name: preset(name).longest_context for name in ("minicpm5-2b", "qwen3-0.6b", "mistral-7b-v0.1")}
    assert found == {"minicpm5-2b": 131072, "qwen3-0.6b": 40960, "mistral-7b-v0.1": 4096}
    assert preset("minicpm5-1b").rope.theta == preset("minicpm5-2b").rope.theta == 5e6


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"minicpm4-0\.5b"):
        preset("minicpm4-0.5")
