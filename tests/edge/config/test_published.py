"""`config.json` with the fields that published models have is read as the preset of that model."""

from __future__ import annotations

import pytest

from edge.config.huggingface import config_from_hf
from edge.config.presets import preset
from tests.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields_are_the_preset(name: str) -> None:
    """End tokens that only generation_config.json has, and padding, are not the network's."""
    found, known = config_from_hf(PUBLISHED[name]).to_json(), preset(name).to_json()
    assert {*found.pop("eos_token_ids")} <= {*known.pop("eos_token_ids")}
    for beside in ("pad_token_id", "bos_token_id"):
        assert known[beside] in (None, found[beside])
        del found[beside], known[beside]
    assert found == known


@pytest.mark.parametrize("name", ["minicpm5-1b", "minicpm5-2b"])
def test_theta_may_stand_in_either_place(name: str) -> None:
    inside = dict(PUBLISHED[name])
    outside = {**inside, "rope_theta": inside.pop("rope_parameters")["rope_theta"]}
    assert config_from_hf(outside) == config_from_hf(PUBLISHED[name])
    assert config_from_hf(PUBLISHED[name]).rope.theta == 5e6
