"""Every rope type of the reference against transformers, and `edge.config.rope` against the reference."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from edge.config import RopeConfig, RopeType
from edge.config.rope import rope_parameters
from edge.model.network.decoder import Decoder
from edge.model.network.rope import rope_frequencies, rotate

SHORT = tuple(1 + 0.05 * i for i in range(16))
LONG = tuple(1 + 1.7 * i for i in range(16))


@dataclass(frozen=True)
class Case:
    """A rope configuration, its published positions, and a length to run it at."""

    rope: RopeConfig
    published: int
    length: int

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The same configuration in transformers' words."""
        rope = self.rope
        words: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
        if rope.type in ("linear", "dynamic", "yarn", "llama3"):
            words["factor"] = rope.factor
        if rope.type == "yarn":
            words |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        if rope.type == "longrope":
            lists = {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
            words |= lists if rope.regime is None else dict.fromkeys(lists, lists[f"{rope.regime}_factor"])
        if rope.type == "llama3":
            words |= {"high_freq_factor": rope.beta_fast, "low_freq_factor": rope.beta_slow}
        if rope.type in ("yarn", "longrope", "llama3"):
            words["original_max_position_embeddings"] = rope.original_max_position_embeddings
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(rope, name) is not None:
                words[name] = getattr(rope, name)
        return words


def longrope(**changes: Any) -> RopeConfig:
    fields: dict[str, Any] = {
        "type": "longrope",
        "original_max_position_embeddings": 32,
        "short_factor": SHORT,
        "long_factor": LONG,
    }
    return RopeConfig(**{**fields, **changes})


def yarn(**changes: Any) -> RopeConfig:
    return RopeConfig(
        **{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_slow": 0.5, **changes}
    )


CASES = {
    "default": Case(RopeConfig(), 64, 40),
    "theta": Case(RopeConfig(theta=500000.0), 64, 40),
    "linear": Case(RopeConfig("linear", factor=4.0), 64, 40),
    "dynamic-within": Case(RopeConfig("dynamic", factor=2.0), 64, 64),
    "dynamic-beyond": Case(RopeConfig("dynamic", factor=2.0), 32, 48),
    "yarn": Case(yarn(), 128, 40),
    "yarn-betas": Case(yarn(beta_fast=4.0, beta_slow=0.25), 128, 40),
    "yarn-untruncated": Case(yarn(truncate=False), 128, 40),
    "yarn-mscale": Case(yarn(mscale=1.5, mscale_all_dim=0.7), 128, 40),
    "yarn-attention": Case(yarn(attention_factor=0.8), 128, 40),
    "abf-and-ntk": Case(RopeConfig("dynamic", theta=1000000.0, factor=4.0), 32, 60),  # as MiniCPM-128K
    "llama3": Case(
        RopeConfig("llama3", 500000.0, 8.0, 32, beta_fast=4.0, beta_slow=1.0),
        128,
        40,
    ),
    "longrope-short": Case(longrope(), 32, 32),
    "longrope-long": Case(longrope(), 128, 48),
    "longrope-short-fixed": Case(longrope(regime="short"), 128, 48),
    "longrope-long-fixed": Case(longrope(regime="long"), 128, 24),
    "longrope-attention": Case(longrope(attention_factor=1.25), 128, 48),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_equal_transformers(tiny_config, llama, case: Case):
    config = tiny_config(rope=case.rope, max_position_embeddings=case.published)
    peer = llama(config, case.rope_parameters)
    ids = torch.randint(config.vocab_size, (case.length,), generator=torch.Generator().manual_seed(1))
    ours = Decoder.from_tensors(config, peer.state_dict(), context=case.length)(ids)
    torch.testing.assert_close(ours, peer(ids[None]).logits[0], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("context", [16, 48, 4096])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_runtime_agrees(tiny_config, case: Case, context: int):
    """The runtime's frequencies are the reference's to the last bit but one."""
    config = tiny_config(rope=case.rope, max_position_embeddings=case.published)
    inverse, scale = rope_frequencies(config, context)
    found, found_scale = rope_parameters(
        config.rope, config.head_dim, context, config.max_position_embeddings
    )
    assert found.shape == (config.head_dim // 2,)
    torch.testing.assert_close(torch.from_numpy(found), inverse, rtol=2e-7, atol=0)
    assert math.isclose(found_scale, scale, rel_tol=1e-6)


def test_published_minicpm4(tiny_config, shared_data: Path):
    """MiniCPM4-8B: its factors are not ones and its scale on cos and sin is exactly 1."""
    data = json.loads((shared_data / "minicpm4-8b" / "config.json").read_text())
    scaling = data["rope_scaling"]
    rope = RopeConfig(
        "longrope",
        theta=data["rope_theta"],
        original_max_position_embeddings=scaling["original_max_position_embeddings"],
        short_factor=tuple(scaling["short_factor"]),
        long_factor=tuple(scaling["long_factor"]),
    )
    config = tiny_config(head_dim=128, rope=rope, max_position_embeddings=data["max_position_embeddings"])
    inverse, scale = rope_frequencies(config, 32768)
    assert scale == 1.0
    i = 40
    assert math.isclose(inverse[i], 1 / (10000 ** (2 * i / 128) * scaling["short_factor"][i]), rel_tol=1e-6)


def test_rotation_is_relative():
    """The product of a query at m and a key at n depends on m - n only."""
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 1, 64, generator=generator)  # [heads, n, d] each

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        angles = position * 10000.0 ** (-torch.arange(32) / 32)
        return rotate(x, angles.cos(), angles.sin())

    near, far = ((turn(q, m) * turn(k, n)).sum() for m, n in ((9, 4), (109, 104)))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert abs(near - (turn(q, 9) * turn(k, 5)).sum()) > 1e-2


def test_every_type_is_covered():
    assert {case.rope.type for case in CASES.values()} == set(get_args(RopeType))
