"""What to measure: one frozen description, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.config import KVType
from edge.errors import EdgeError
from edge.executors.registry import ARTIFACT_EXECUTORS, EXECUTORS, NATIVE, offered_executors
from edge.quant.scheme import QuantScheme

ATTENTION = ("dense", "sparse")
"""Kinds of attention that exist."""
FILLS = ("prefill", "synthetic")

Test = Literal["prefill", "decode"]


@dataclass(frozen=True)
class ProfileOptions:
    """The tests are every combination of executor, quantize, threads and kv_type with every depth, and there
    a prefill of each length in `prompt` and a decode of `generate` tokens.

    executor: names of `edge.executors.registry`; those that run exported folders have their quantization,
    attention and KV type from the folder. quantize: as in `edge.load`; None is what the model has. head:
    of all of them. threads: None is the performance cores. prompt: tokens of a prefill, 0 for none.
    generate: tokens of a decode, 0 for none. depth: tokens that are in the KV cache before a test. fill: how
    they got there, `prefill` or `synthetic` (rows of a short prefill, repeated). repeat: measurements of each
    test, in turn with the others, after one that does not count. operators: also measure every operator, in
    runs of their own.
    """

    executor: tuple[str, ...] = (NATIVE,)
    quantize: tuple[str | None, ...] = (None,)
    head: str | None = None
    threads: tuple[int | None, ...] = (None,)
    prompt: tuple[int, ...] = (512,)
    generate: int = 64
    depth: tuple[int, ...] = (0,)
    attention: tuple[str, ...] = ("dense",)
    kv_type: tuple[KVType, ...] = ("float16",)
    activations: str = "int8"
    fill: str = "prefill"
    repeat: int = 5
    operators: bool = False

    def __post_init__(self) -> None:
        for name, given, known in (
            ("executor", self.executor, (*EXECUTORS, *offered_executors())),
            ("attention", self.attention, ATTENTION),
            ("fill", (self.fill,), FILLS),
        ):
            for value in given:
                if value not in known:
                    raise EdgeError(
                        f"There is no {name} '{value}' in this version; there is: {', '.join(known)}."
                    )
        for quantization in (*self.quantize, self.head):
            QuantScheme.chosen(quantization)
        for name, values, least in (
            ("threads", [count for count in self.threads if count is not None], 1),
            ("prompt", self.prompt, 0),
            ("generate", (self.generate,), 0),
            ("depth", self.depth, 0),
            ("repeat", (self.repeat,), 1),
        ):
            for number in values:
                if isinstance(number, bool) or not isinstance(number, int) or number < least:
                    raise EdgeError(f"{name} must be a whole number of {least} or more, got {number!r}.")
        for name in ("executor", "quantize", "threads", "depth", "attention", "kv_type"):
            if len(getattr(self, name)) == 0:
                raise EdgeError(f"{name} is empty: give at least one.")
        if set(self.executor) & set(ARTIFACT_EXECUTORS) and self.quantize != (None,):
            raise EdgeError("An exported folder has its quantization already: leave quantize out.")
        if not self.tests:
            raise EdgeError("There is nothing to measure: give prompt or generate (or both) above 0.")

    @property
    def tests(self) -> tuple[tuple[Test, int, int], ...]:
        """(test, tokens, depth) of one configuration, the shallow ones first."""
        found: list[tuple[Test, int, int]] = []
        for depth in sorted(set(self.depth)):
            found += [("prefill", tokens, depth) for tokens in dict.fromkeys(self.prompt) if tokens]
            found += [("decode", self.generate, depth)] if self.generate else []
        return tuple(found)

    @property
    def context(self) -> int:
        """Tokens that the deepest test reaches."""
        return max(depth + tokens for _, tokens, depth in self.tests)
