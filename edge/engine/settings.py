"""What shapes an answer: the options of sampling and generation, and whose word counts.

A flag is stronger than a request, that than the model's generation_config, and that than the default. What
one source says in two ways (`do_sample` and `temperature`) must agree. Which defaults hold, is the model's
choice: see `merge_settings`.

A flag is what the person who runs the program said (a command-line option, an argument of a Python call); a
request is what arrived from elsewhere (an HTTP body, a saved conversation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edge.config.generation import read_generation_config
from edge.errors import EdgeError
from edge.executors.native.library import MAX_LOGPROBS
from edge.system.options import check_options, default_of, option, plain

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
LOCAL_CHAT: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
"""How answers of a model are sampled that does not say how: what other programs for local chats do."""
_WAYS = ("top_k", "top_p", "min_p", "typical_p")
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


def _by_default(name: str) -> str:
    return f"by default the model's own; {LOCAL_CHAT[name]:g} where it says nothing about sampling."


MAX_BIASES = 4096
"""Token ids of a `logit_bias`, each of which is added at every token."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; the defaults leave the model's own distribution as it is, with every filter off.
    Answers have other ones, see `merge_settings`.

    temperature: 0 is greedy. top_k: 0 is off. top_p, typical_p: 1 is off. min_p: smallest probability
    relative to the best token's, 0 is off.
    repetition_penalty: divides positive and multiplies negative logits of tokens seen before (CTRL), 1 is
    off. frequency_penalty, presence_penalty: subtracted from a logit per occurrence and once, 0 is off.
    penalty_window: penalties count this many last tokens, None all. With a repetition penalty the prompt
    counts too (as in Hugging Face); frequency and presence penalties alone count the answer only (as in
    OpenAI's API).
    logit_bias: added to the logits of these token ids; -inf forbids one.
    seed: None draws a fresh one. logprobs: None for none, 0 for the chosen token's, n for the n best as well.
    """

    temperature: float = option(1.0, f"0 always takes the likeliest token; {_by_default('temperature')}")
    top_k: int = option(0, f"Keep the k likeliest tokens, 0 for all; {_by_default('top_k')}")
    top_p: float = option(
        1.0, f"Keep the likeliest tokens up to this total probability; {_by_default('top_p')}"
    )
    min_p: float = option(
        0.0, f"Drop tokens below this share of the best one's probability; {_by_default('min_p')}"
    )
    typical_p: float = option(1.0, "Locally typical sampling up to this total probability.", flag="--typical")
    repetition_penalty: float = option(1.0, "Above 1 discourages every token seen before.")
    frequency_penalty: float = option(0.0, "Subtracted per earlier occurrence.")
    presence_penalty: float = option(0.0, "Subtracted once from tokens that occurred.")
    penalty_window: int | None = None
    logit_bias: Mapping[int, float] = option(
        dict, "Add VALUE to the logit of a token; repeatable.", metavar="ID=VALUE"
    )
    seed: int | None = option(None, "The same seed gives the same answer.")
    logprobs: int | None = option(None, "Report log-probabilities of this many best tokens (with --json).")

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not _is_float32(value):
                raise EdgeError(f"{name} must be a finite number, got {value!r}.")
        for name in ("top_k", "penalty_window", "seed", "logprobs"):
            value = getattr(self, name)
            optional = name != "top_k" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise EdgeError(f"{name} must be a whole number of 0 or more, got {value!r}.")
        if self.temperature < 0:
            raise EdgeError(f"temperature must be 0 (greedy) or more, got {self.temperature}.")
        for name in ("top_p", "min_p", "typical_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise EdgeError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.repetition_penalty <= 0:
            raise EdgeError(f"repetition_penalty must be above 0 (1 is off), got {self.repetition_penalty}.")
        if self.logprobs is not None and self.logprobs > MAX_LOGPROBS:
            raise EdgeError(f"logprobs must be at most {MAX_LOGPROBS}, got {self.logprobs}.")
        if not isinstance(self.logit_bias, Mapping):
            raise EdgeError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}.")
        if len(self.logit_bias) > MAX_BIASES:
            raise EdgeError(
                f"logit_bias must have at most {MAX_BIASES} token ids, got {len(self.logit_bias)}: leave "
                "some out."
            )
        for token, bias in self.logit_bias.items():
            number = _is_float32(bias) or bias == -math.inf
            if isinstance(token, bool) or not isinstance(token, int) or token < 0 or not number:
                raise EdgeError(f"logit_bias must map token ids to numbers, got {token!r}: {bias!r}.")
            if token >= 2**31:
                raise EdgeError(
                    f"logit_bias has the token id {token}, but no vocabulary is that large: token ids are "
                    "below 2147483648."
                )

    @property
    def has_penalties(self) -> bool:
        """True if earlier tokens change the logits."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def words(self) -> str:
        """What is not off, for example `temperature 0.2, top_p 0.9`."""
        greedy = self.temperature == 0
        names = [
            name
            for name in (*(() if greedy else _WAYS), *_PENALTIES)
            if getattr(self, name) != default_of(SamplingParams, name)
        ]
        first = "greedy" if greedy else f"temperature {self.temperature:g}"
        return ", ".join([first, *(f"{name} {getattr(self, name):g}" for name in names)])


def _is_float32(value: object) -> bool:
    """True for a number that stays finite as float32, the sampler's type."""
    return isinstance(value, (int, float)) and abs(value) <= _FLOAT32_MAX


_NUMBERS = tuple(f.name for f in fields(SamplingParams) if f.type == "float")
_SAMPLING = tuple(f.name for f in fields(SamplingParams))
SETTING_NAMES = (*_SAMPLING, "max_new_tokens", "stop", "eos", "eos_token_id", "ignore_eos", "do_sample")
"""Every name that a flag or a request may use."""


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that shapes one answer.

    max_new_tokens: None lets the answer run until it ends or the context is full.
    stop: strings that end the answer and are cut from it; one that is a control token is an end token. eos:
    end tokens beside the model's own, each the text of a token or its id in digits. eos_token_ids: end tokens
    in place of the model's own, None for those. ignore_eos: neither counts, only `stop` (for measurements).
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = option(
        None,
        "Longest answer in tokens; by default the model's own, else what the context has room for.",
        least=1,
        flag="--max-tokens",
    )
    stop: tuple[str, ...] = option((), "End the answer at this text; repeatable.")
    eos: tuple[str, ...] = option(
        (), "End the answer at this token too, its text or id; repeatable.", metavar="TOKEN"
    )
    eos_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _stop(self.stop)
        check_options(self)


def merge_settings(
    generation_config: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> GenerationSettings:
    """The settings of one answer; a value of None counts as not given.

    Names in `request` and `flags` are those of SETTING_NAMES; another one is an EdgeError that names it. From
    `generation_config` (Hugging Face's file) the names that matter here are read and the rest is ignored.
    do_sample False means temperature 0, unless a stronger source says otherwise. The file's stop strings
    count beside given ones.

    A model that says how to sample (a temperature above 0, top_k, top_p, min_p or typical_p) is taken at its
    word: what it leaves out is off, and the temperature 1. (Of transformers' own defaults a top_k of 50 is
    left out.) Any other one, also with do_sample true alone, has LOCAL_CHAT, each value until a stronger
    source gives another; where it says that nothing is sampled, as soon as a stronger source asks for
    sampling.
    """
    recommended = {} if generation_config is None else read_generation_config(generation_config).settings
    defaults = {} if _says_how(recommended) else LOCAL_CHAT
    values: dict[str, Any] = dict(recommended)
    for source in (plain(request or {}), plain(flags or {})):
        for name in source:
            if name not in SETTING_NAMES:
                raise EdgeError(f"Unknown setting '{name}'; known settings: {', '.join(SETTING_NAMES)}.")
        _check_sampling(source)
        values = overlay(values, source)
    if values.get("do_sample") is False:
        values["temperature"] = 0.0
    if values.get("temperature") != 0:
        values = {**defaults, **values}
    sampling = SamplingParams(**{name: values[name] for name in _SAMPLING if name in values})
    ignore_eos = values.get("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise EdgeError(f"ignore_eos must be true or false, got {ignore_eos!r}.")
    return GenerationSettings(
        sampling=sampling,
        max_new_tokens=values.get("max_new_tokens"),
        stop=tuple(dict.fromkeys([*recommended.get("stop", ()), *_stop(values.get("stop", ()))])),
        eos=_tokens(values.get("eos", ())),
        eos_token_ids=_token_ids(values["eos_token_id"]) if "eos_token_id" in values else None,
        ignore_eos=ignore_eos,
    )


def _says_how(recommended: Mapping[str, Any]) -> bool:
    """Whether a model's settings tell how to sample, and not only whether."""
    return recommended.get("temperature", 0) > 0 or any(name in recommended for name in _WAYS)


def overlay(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Two sources of settings as one; a value of None in the stronger counts as not given.

    `do_sample` and `temperature` both say whether to sample, so a stronger one undoes the other.
    """
    given = {name: value for name, value in stronger.items() if value is not None}
    kept = dict(weaker)
    if "temperature" in given:
        kept.pop("do_sample", None)
    sample = given.get("do_sample")
    if sample is False or (sample and kept.get("temperature") == 0):
        kept.pop("temperature", None)
    return {**kept, **given}


def _check_sampling(source: Mapping[str, Any]) -> None:
    """Raise EdgeError if one source says both to sample and not to."""
    sample, temperature = source.get("do_sample"), source.get("temperature")
    if not (sample is None or isinstance(sample, bool)):
        raise EdgeError(f"do_sample must be true or false, got {sample!r}.")
    if sample is not None and temperature is not None and sample != (temperature != 0):
        raise EdgeError(
            f"do_sample {str(sample).lower()} and temperature {temperature!r} contradict each other; leave "
            "one of them out."
        )


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise EdgeError(f"stop must be a non-empty string or a list of them, got {value!r}.")
    return tuple(strings)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise EdgeError(f"eos_token_id must be a token id or a list of them, got {value!r}.")
    return tuple(ids)


def _tokens(value: Any) -> tuple[str, ...]:
    """Texts of tokens, or ids in digits; an id may come as a number."""
    tokens = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(t, (str, int)) and not isinstance(t, bool) and t != "" for t in tokens):
        raise EdgeError(f"eos must be a token's text or id, or a list of them, got {value!r}.")
    return tuple(map(str, tokens))
