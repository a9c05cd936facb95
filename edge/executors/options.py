"""How to run a model: one frozen set of options for every executor, the Python API and the command line.

A plugin adds options of its own executors to `RUN_OPTIONS`; they are keywords of `edge.load` like the others.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from edge.config import KVChoice, KVType
from edge.config.attention import AttentionMode, Selection
from edge.config.rope_regime import RopeRegime
from edge.executors.registry import EXECUTORS
from edge.system.options import Option, check_option, check_options, option
from edge.system.registry import Registry


@dataclass(frozen=True)
class ExtraOption:
    """An option that a plugin declares. kind: the type of its value, for example `int` or `int | None`."""

    kind: Any
    default: Any
    declared: Option


RUN_OPTIONS: Registry[ExtraOption] = Registry("run option")


def extra_options() -> dict[str, ExtraOption]:
    """The options of all installed plugins by name."""
    return {name: RUN_OPTIONS.get(name) for name in RUN_OPTIONS}


def executor_names() -> tuple[str, ...]:
    """What `executor` may be, those of plugins last."""
    return EXECUTORS.names()


_X86 = ("x86_64", "AMD64")


def kv_beside(activations: str) -> KVType:
    """The KV type that goes with the activations on this CPU.

    int16 pays on x86, whose instruction makes twice as many products of 16-bit integers as of floats; ARM has
    none. Beside float32 activations queries and softmax weights are not to be rounded either.
    """
    return "int16" if activations != "float32" and platform.machine() in _X86 else "float16"


@dataclass(frozen=True)
class RunOptions:
    """See the fields' own help. What an executor has no use for is refused by name when it is opened.

    executor: None runs bundles natively, and a folder of `edge export` in the runtime that it was made for.
    context: None takes what the model was trained (or exported) for. tier: kernels of this CPU, None the
    best. max_batch: most tokens of one forward pass. extra: options that plugins declare, by name; those that
    are left out have their defaults, see `extra_value`.
    """

    executor: str | None = option(
        None,
        "What runs the network; by default native, or the runtime that a folder was exported for.",
        choices=executor_names,
    )
    context: int | None = option(
        None, "Longest sequence in tokens; by default what the model was made for.", least=1
    )
    threads: int | None = option(None, "CPU threads; by default the performance cores.", least=1, most=1024)
    mmap: bool | None = option(
        None,
        "Read the weights' mapped file when it is used, or copy it; by default what is fast.",
        flag="--mmap/--no-mmap",
    )
    activations: str = option(
        "auto",
        "What the inputs of matrices are rounded to: int8; int16, near exact and a little slower; float32, "
        "exact and slowest; auto: int8, and int16 for the built-in model. GPUs compute with float16.",
        choices=("auto", "int8", "int16", "float16", "float32"),
    )
    kv_type: KVChoice = option(
        "auto",
        "Number type of the KV cache. int16 is as exact as float16 and faster on x86, int8 takes half the "
        "memory, int4 a quarter, at a cost in accuracy; auto: float16, but on x86 int16 unless activations "
        "are float32.",
        choices=get_args(KVChoice),
        flag="--kv",
        former=("--kv-type",),
    )
    attention: AttentionMode = option(
        "auto",
        "InfLLM-V2 sparse attention beyond the dense length; auto: if the model says so.",
        choices=get_args(AttentionMode),
    )
    selection: Selection | None = option(
        None,
        "Sparse attention with blocks chosen as in the paper and CPM.cu, in MiniCPM4's published code, or in "
        "later InfLLM-V2 code; by default by the model's sparse_config.",
        choices=get_args(Selection),
    )
    rope_regime: RopeRegime = option(
        "auto",
        "LongRoPE's factors of short or of long texts, whatever the context; auto: long for a context beyond "
        "the length that the model was first trained for.",
        choices=get_args(RopeRegime),
    )
    tier: str | None = None
    max_batch: int = 256
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        check_option("max_batch", self.max_batch, int, Option("", least=1))
        check_option("tier", self.tier, str | None, Option(""))
        for name, value in self.extra.items():
            known = RUN_OPTIONS.get(name)
            check_option(name, value, known.kind, known.declared)

    @property
    def kv_stored(self) -> KVType:
        """kv_type in options that `open_executor` has completed."""
        assert self.kv_type != "auto"
        return self.kv_type

    def extra_value(self, name: str) -> Any:
        """A plugin's option: what was given, or its default."""
        return self.extra[name] if name in self.extra else RUN_OPTIONS.get(name).default
