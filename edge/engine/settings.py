"""What a request may set, and whose word counts.

A flag is stronger than a request, that than the model's generation_config, and that than the default.

A flag is what the person who runs the program said (a command-line option, an argument of a Python call); a
request is what arrived from elsewhere (an HTTP body, a saved conversation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edge.engine.sampling import SamplingParams
from edge.errors import EdgeError

_SAMPLING = tuple(f.name for f in fields(SamplingParams))
SETTING_NAMES = (*_SAMPLING, "max_new_tokens", "stop", "eos_token_id", "ignore_eos", "do_sample")
"""Every name that a flag or a request may use."""

_GENERATION_CONFIG = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("max_new_tokens", "do_sample", "eos_token_id"),
)


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that shapes one answer.

    max_new_tokens: None lets the answer run until it ends or the context is full.
    stop: strings that end the answer and are cut from it. eos_token_ids: tokens that end it, None means the
    model's own; ignore_eos lets it run on (for measurements).
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False


def merge_settings(
    generation_config: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> GenerationSettings:
    """The settings of one answer; a value of None counts as not given.

    Names in `request` and `flags` are those of SETTING_NAMES; another one is an EdgeError that names it. From
    `generation_config` (Hugging Face's file) the names that matter here are read and the rest is ignored.
    do_sample False means temperature 0, unless a stronger source gives a temperature.
    """
    values: dict[str, Any] = {}
    known = {k: v for k, v in (generation_config or {}).items() if k in _GENERATION_CONFIG}
    for source in (known, request or {}, flags or {}):
        for name in source:
            if name not in SETTING_NAMES:
                raise EdgeError(f"Unknown setting '{name}'; known settings: {', '.join(SETTING_NAMES)}.")
        given = {name: value for name, value in source.items() if value is not None}
        if given.pop("do_sample", True) is False:
            given.setdefault("temperature", 0.0)
        values.update(given)
    sampling = SamplingParams(**{name: values[name] for name in _SAMPLING if name in values})
    ignore_eos = values.get("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise EdgeError(f"ignore_eos must be true or false, got {ignore_eos!r}.")
    return GenerationSettings(
        sampling=sampling,
        max_new_tokens=_max_new_tokens(values.get("max_new_tokens")),
        stop=_stop(values.get("stop", ())),
        eos_token_ids=_token_ids(values["eos_token_id"]) if "eos_token_id" in values else None,
        ignore_eos=ignore_eos,
    )


def _max_new_tokens(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise EdgeError(f"max_new_tokens must be a whole number of 1 or more, got {value!r}.")
    return value


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise EdgeError(f"stop must be a non-empty string or a list of them, got {value!r}.")
    return tuple(strings)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = (value,) if isinstance(value, int) else value
    if not isinstance(ids, (list, tuple)) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise EdgeError(f"eos_token_id must be a token id or a list of them, got {value!r}.")
    return tuple(ids)
