"""Hugging Face's `generation_config.json`: what a model's authors recommend, in one meaning for each value.

Numbers that mean "off" (-1 as in vLLM, 50.0, null) are taken for what they mean, contradictions as
transformers takes them, with a note; what has no clear meaning is refused by file and key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.config.fields import listed, unique
from edge.errors import ConfigError

_LARGEST = 3e38  # the sampler computes in float32


@dataclass(frozen=True)
class _Number:
    """A numeric setting, of `least` to `most`. is_off: tells values that do nothing, as upstream; all of them
    become `off`, and None leaves the setting out.
    """

    least: float = 0
    most: float = _LARGEST
    whole: bool = False
    positive: bool = False
    off: float | None = None
    is_off: Callable[[float], bool] = lambda value: False

    @property
    def words(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.most < _LARGEST:
            return f"{kind} from {self.least:g} to {self.most:g}"
        return f"{kind} above 0" if self.positive else f"{kind} of {self.least:g} or more"


_SHARE = _Number(most=1, off=1.0, is_off=lambda share: share >= 1 or share == -1)
_NUMBERS = {
    "temperature": _Number(),
    "top_k": _Number(whole=True, off=0, is_off=lambda count: count <= 0),
    "top_p": _SHARE,
    "min_p": _Number(most=1, off=0.0, is_off=lambda share: share <= 0),
    "typical_p": _SHARE,
    "repetition_penalty": _Number(positive=True),
    "max_new_tokens": _Number(least=1, whole=True, is_off=lambda count: count <= 0),
}
_SAMPLES = {"temperature": (0, 1), "top_k": (0, 50), "top_p": (1,), "min_p": (0,), "typical_p": (1,)}
"""Settings that only sampling has, with the values that say nothing (transformers' defaults among them)."""
_WITHOUT_EFFECT: dict[str, Any] = {
    **{"num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "diversity_penalty": 0, "top_h": None},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1},
    **{"min_length": 0, "min_new_tokens": 0, "epsilon_cutoff": 0, "eta_cutoff": 0, "guidance_scale": 1},
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
}
"""Settings that change transformers' answers and nothing here, with the values that say nothing."""


@dataclass(frozen=True)
class GenerationConfig:
    """settings: values by the names of `edge.engine.settings`, `do_sample` included. eos_token_ids: as the
    file has them, without those that mean none. notes: sentences about what was settled or has no effect.
    """

    settings: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...]


def read_generation_config(
    data: Mapping[str, Any], where: str = "generation_config.json"
) -> GenerationConfig:
    """Read the file's contents; where: its name in sentences. ConfigError names the key that is wrong."""
    settings: dict[str, Any] = {}
    for name, number in _NUMBERS.items():
        if data.get(name) is not None:
            value = _number(data[name], number, name, where)
            if value is not None:
                settings[name] = value
    sample = data.get("do_sample")
    if sample is not None:
        if sample not in (0, 1):
            raise _wrong("do_sample", where, sample, "true or false")
        settings["do_sample"] = bool(sample)
    if stop := _texts(data.get("stop_strings"), "stop_strings", where):
        settings["stop"] = stop
    ends = _token_ids(data.get("eos_token_id"), "eos_token_id", where)
    return GenerationConfig(settings, ends, tuple(_notes(data, settings, where)))


def _number(value: Any, number: _Number, name: str, where: str) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise _wrong(name, where, value, number.words)
    if number.is_off(value):
        return number.off
    whole = not number.whole or value == int(value)
    if not whole or not number.least <= value <= number.most or (number.positive and value <= 0):
        raise _wrong(name, where, value, number.words)
    return int(value) if number.whole else value


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise _wrong(name, where, value, "a text or a list of them")
    return tuple(text for text in texts if text)


def _token_ids(value: Any, name: str, where: str) -> tuple[int, ...]:
    """Token ids without negative ones, which mean none."""
    ids = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    for each in ids:
        whole = isinstance(each, int) or (isinstance(each, float) and each.is_integer())
        if isinstance(each, bool) or not whole:
            raise _wrong(name, where, value, "a token id or a list of them")
    return unique(int(each) for each in ids if each >= 0)


def _notes(data: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> list[str]:
    found = []
    sampling = [
        f"{name} {settings[name]:g}"
        for name, silent in _SAMPLES.items()
        if name in settings and settings[name] not in silent
    ]
    if settings.get("do_sample") is False and sampling:
        found.append(
            f"{where} has do_sample false beside {listed(sampling)}: answers are greedy, as in transformers, "
            "unless you give a temperature."
        )
    if settings.get("do_sample") and settings.get("temperature") == 0:
        found.append(f"{where} has do_sample true beside temperature 0: answers are greedy.")
    length, new = data.get("max_length"), settings.get("max_new_tokens")
    if length is not None and new is not None and length != new:
        found.append(
            f"{where} has max_length {length!r:.20} beside max_new_tokens {new}: the second counts, as in "
            "transformers."
        )
    idle = [
        name
        for name, silent in _WITHOUT_EFFECT.items()
        if data.get(name) not in (None, False, [], {}, -1, silent)
    ]
    if idle:
        found.append(f"{where} sets {listed(idle)}, which this program does not have: without effect.")
    return found


def _wrong(name: str, where: str, value: Any, wanted: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ConfigError(f"'{name}' in {where} must be {wanted}, not {shown}; correct or remove it there.")
