"""The keyword arguments of the Python API as types: editors complete them, type checkers know them.

Copies of declarations that live elsewhere: settings in `edge.engine.settings`, options in the dataclasses
`SourceOptions` and `RunOptions`. `tests/edge/test_keywords.py` compares every name and type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from edge.config import KVChoice
from edge.config.attention import AttentionMode, Selection
from edge.config.rope_regime import RopeRegime


class Settings(TypedDict, total=False):
    """See `edge.engine.settings.SamplingParams` and `GenerationSettings`; None counts as not given."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_window: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    logprobs: int | None
    max_new_tokens: int | None
    stop: str | list[str] | tuple[str, ...] | None
    eos: str | int | list[str | int] | tuple[str | int, ...] | None
    eos_token_id: int | list[int] | tuple[int, ...] | None
    ignore_eos: bool | None
    do_sample: bool | None


class LoadOptions(TypedDict, total=False):
    """See `edge.hub.options.SourceOptions` and `edge.executors.options.RunOptions`."""

    quantize: str | None
    head: str | None
    revision: str | None
    offline: bool
    verify: bool
    executor: str | None
    context: int | None
    threads: int | None
    mmap: bool | None
    activations: str | None
    kv_type: KVChoice | None
    attention: AttentionMode
    selection: Selection | None
    rope_regime: RopeRegime
    tier: str | None
    max_batch: int
