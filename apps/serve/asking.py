"""The fields that OpenAI's two completion APIs share, and what belongs to an answer beside its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edge.apps.serve.answering import End
from edge.apps.serve.errors import refusal
from edge.apps.serve.json_in import Fields
from edge.engine.completion import Completion
from edge.executors.native.library import MAX_LOGPROBS

MOST_CHOICES = 16
_MOST_STOPS = 16
_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def read_settings(fields: Fields, *most_tokens: str) -> dict[str, Any]:
    """What shapes an answer, by the names of `edge.engine.settings.SETTING_NAMES`. most_tokens: fields that
    limit its length, the first that is there counts.
    """
    limit = next((fields.whole(name, 1) for name in most_tokens if fields.has(name)), None)
    found = {
        "max_new_tokens": limit,
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.whole("top_k", -1),
        "min_p": fields.number("min_p", 0, 1),
        "typical_p": fields.number("typical_p", 0, 1),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 1e-3, 100),
        "seed": _seed(fields),
        "stop": fields.texts("stop", _MOST_STOPS),
        "logit_bias": _logit_bias(fields),
        "ignore_eos": fields.flag("ignore_eos", None),
    }
    if found["top_k"] == -1:  # as some clients write "all"
        found["top_k"] = 0
    return {name: value for name, value in found.items() if value is not None}


def _seed(fields: Fields) -> int | None:
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    return None if seed is None else seed % 2**63


def _logit_bias(fields: Fields) -> dict[int, float] | None:
    given = fields.object("logit_bias")
    if given is None:
        return None
    for token in given.values:
        if not token.isascii() or not token.isdecimal() or len(token) > 9:
            raise refusal(fields.name("logit_bias"), f"logit_bias has {token[:40]!r}, which is no token id.")
    return {int(token): given.number(token, -100, 100) or 0.0 for token in given.values}


def read_choices(fields: Fields) -> int:
    """`n`, and that `best_of` asks for no others."""
    choices = fields.whole("n", 1, MOST_CHOICES) or 1
    fields.refuse("best_of", "answers are not compared here; ask for n of them.", harmless=(1, choices))
    return choices


def read_logprobs(fields: Fields) -> int | None:
    """`logprobs` and `top_logprobs` of chat completions, as the setting `logprobs`."""
    wanted = fields.flag("logprobs")
    most = fields.whole("top_logprobs", 0, MAX_LOGPROBS)
    if most is not None and not wanted:
        raise refusal(fields.name("top_logprobs"), "top_logprobs needs logprobs to be true.")
    return (most or 0) if wanted else None


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with the usage."""
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None and not stream:
        raise refusal(fields.name("stream_options"), "stream_options needs stream to be true.")
    return stream, options is not None and options.flag("include_usage")


def finish_reason(done: Completion, calls: bool = False) -> str:
    """What ended an answer, in OpenAI's words."""
    reason = _FINISH.get(done.stop_reason, "stop")
    return "tool_calls" if calls and reason == "stop" else reason


def usage(ends: Sequence[End], reasoning_tokens: int | None = None) -> dict[str, Any]:
    """What a request took. Answers to the same prompt count it once."""
    prompt, answers = ends[0].completion.prompt_tokens, sum(len(end.completion.tokens) for end in ends)
    return usage_of(prompt, answers, ends[0].completion.reused_tokens, reasoning_tokens)


def usage_of(prompt: int, answers: int, cached: int, reasoning: int | None = None) -> dict[str, Any]:
    """The same of counts."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if reasoning is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return found


def details(done: Completion) -> dict[str, Any]:
    """What this server says of an answer beyond OpenAI's fields, as `x_edge`."""
    found: dict[str, Any] = {
        "stop_reason": done.stop_reason,
        "seed": done.seed,
        "ttft_seconds": _rounded(done.ttft_seconds),
        "prefill_tokens_per_second": _rounded(done.prefill_tokens_per_second),
        "tokens_per_second": _rounded(done.tokens_per_second),
    }
    if (guessed := done.speculation) is not None:
        found["speculation"] = {
            **{name: _rounded(value) for name, value in asdict(guessed).items()},
            "mean_accepted_length": _rounded(guessed.mean_accepted_length),
            "speedup": _rounded(guessed.speedup),
        }
    return found


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) and math.isfinite(value) else value
