"""What is measured: the parts of a comparison, each a list of runs that go in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .models import INT4_32, INT4_128, TERNARY, Weights
from .programs import EDGE, GENAI, LLAMA, OPENVINO, Program

CONTEXT, STEPS = 512, 64
PROMPTS = (512, 4096)
STREAMS = (1, 4, 8)
DEPTHS = {32768: 16, 130000: 6}  # depth -> decoded tokens
FEW = 3  # rounds at most of what takes long
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@dataclass(frozen=True)
class Trial:
    """A prefill or a decode of `tokens` tokens after `depth` others, by so many sequences at once."""

    kind: str
    tokens: int
    depth: int = 0
    streams: int = 1


@dataclass(frozen=True)
class Run:
    """One process of one program.

    setting: in tables, beside the weights. arguments: further ones of its worker. environment: variables of
    the process. busy: busy processes beside it. rounds: at most.
    """

    program: Program
    weights: Weights
    tests: tuple[Trial, ...]
    setting: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    busy: int = 0
    rounds: int = 5


@dataclass(frozen=True)
class Machine:
    """What the runs depend on. kv_type: the runtime's default. amx: whether the CPU has it."""

    kv_type: str
    amx: bool
    busy: tuple[int, ...] = (0, 1, 2)


def _edge(weights: Weights, tests: tuple[Trial, ...], **rest: Any) -> Run:
    arguments = {"quantize": weights.quantize, "head": weights.head, **rest.pop("arguments", {})}
    return Run(EDGE, weights, tests, arguments=arguments, **rest)


def _llama(weights: Weights, tests: tuple[Trial, ...], **rest: Any) -> list[Run]:
    """Flash attention off and on: the better one counts."""
    return [
        Run(LLAMA, weights, tests, setting, {"flash_attention": bool(setting)}, **rest)
        for setting in ("", "flash attention")
    ]


def _all_int4(machine: Machine, tests: tuple[Trial, ...], limits: bool, rounds: int) -> list[Run]:
    """Every program with int4 weights, in both groups where it has them."""
    runs = []
    for weights in (INT4_32, INT4_128):
        runs.append(_edge(weights, tests, arguments={"limits": limits}, rounds=rounds))
        runs.append(Run(OPENVINO, weights, tests, environment=NO_AMX if machine.amx else {}, rounds=rounds))
        if machine.amx:
            runs.append(Run(OPENVINO, weights, tests, "with AMX", rounds=rounds))
        runs.append(Run(GENAI, weights, tests, rounds=rounds))
    return [*runs, *_llama(INT4_32, tests, rounds=rounds)]


def decode(machine: Machine) -> list[Run]:
    return _all_int4(machine, (Trial("decode", STEPS, CONTEXT),), limits=True, rounds=5)


def prefill(machine: Machine) -> list[Run]:
    return _all_int4(machine, tuple(Trial("prefill", n) for n in PROMPTS), limits=False, rounds=FEW)


def _beside_llama(weights: Weights) -> list[Run]:
    tests = (Trial("decode", STEPS, CONTEXT),)
    return [_edge(weights, tests, arguments={"limits": True}), *_llama(weights, tests)]


def llama(machine: Machine) -> list[Run]:
    return _beside_llama(INT4_32)


def ternary(machine: Machine) -> list[Run]:
    return _beside_llama(TERNARY)


def depth(machine: Machine) -> list[Run]:
    """Our sparse and dense attention with the default KV cache and the others; llama.cpp's is dense.

    llama.cpp has a cache in 8 bits with flash attention only.
    """
    deep = tuple(Trial("decode", steps, depth) for depth, steps in DEPTHS.items())
    short = Trial("decode", STEPS, CONTEXT)
    runs = [
        _edge(
            INT4_32,
            (short, *deep),
            setting=f"{attention}, {kv} KV",
            arguments={"attention": attention, "kv": kv},
            rounds=FEW,
        )
        for attention in ("sparse", "dense")
        for kv in dict.fromkeys((machine.kv_type, "float16", "int8"))
    ]
    for kv, flash in (("float16", False), ("float16", True), ("q8_0", True)):
        setting = f"{kv} KV{', flash attention' if flash else ''}"
        arguments = {"flash_attention": flash, "kv": kv}
        runs.append(Run(LLAMA, INT4_32, deep, setting, arguments, rounds=FEW))
    return runs


def busy(machine: Machine) -> list[Run]:
    """Beside busy processes llama.cpp takes half a minute."""
    tests = (Trial("decode", STEPS, CONTEXT),)
    runs = []
    for count in machine.busy:
        rounds = FEW if count else 5
        runs.append(_edge(INT4_32, tests, busy=count, rounds=rounds))
        runs += _llama(INT4_32, tests, busy=count, rounds=rounds)
    return runs


def streams(machine: Machine) -> list[Run]:
    """Several sequences in one pass; tokens per second are those of all of them."""
    tests = tuple(Trial("decode", STEPS, CONTEXT, count) for count in STREAMS)
    return [_edge(INT4_32, tests), *_llama(INT4_32, tests)]


PARTS: dict[str, Callable[[Machine], list[Run]]] = {
    "decode": decode,
    "llama": llama,
    "prefill": prefill,
    "ternary": ternary,
    "depth": depth,
    "busy": busy,
    "streams": streams,
}
