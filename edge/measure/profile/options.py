"""What to measure: one frozen description, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge.config import KVChoice
from edge.config.attention import AttentionMode
from edge.config.rope_regime import RopeRegime
from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.system.options import check_options, option, same, several

Test = Literal["prefill", "decode", "verify"]


class Case(NamedTuple):
    """One test of one configuration.

    It is a prefill of `tokens`, a decode of `tokens` by each of `streams` sequences that go through the
    executor together, or the verification of `tokens` rows of one sequence in one pass. depth: tokens in the
    KV cache of every sequence before.
    """

    test: Test
    tokens: int
    depth: int
    streams: int = 1

    @property
    def total(self) -> int:
        """Tokens of all streams."""
        return self.tokens * self.streams

    def __str__(self) -> str:
        """`decode 64`, `decode 64 in 8 streams`, `verify 4`."""
        return f"{self.test} {self.tokens}{f' in {self.streams} streams' if self.streams > 1 else ''}"


@dataclass(frozen=True)
class ProfileOptions:
    """The tests are every combination of executor, quantize, threads, attention and kv_type with every depth,
    and there a prefill of each length in `prefill`, a decode of `generate` tokens in each number of
    `streams`, and a verification of each number of `rows` (and of one, which the others are compared with).

    executor: None is the one that the files are made for; an exported folder has its own quantization,
    attention and KV type. head: of all quantizations. fill: how depths are reached, `prefill` or `synthetic`
    (rows of a short prefill, repeated). repeat: measurements of each test, in turn with the others, after one
    that does not count. operators: also measure every operator, in runs of their own.
    """

    executor: tuple[str | None, ...] = several(RunOptions, "executor")
    quantize: tuple[str | None, ...] = several(SourceOptions, "quantize")
    head: str | None = same(SourceOptions, "head")
    threads: tuple[int | None, ...] = several(RunOptions, "threads")
    prefill: tuple[int, ...] = option(
        (512,), "Tokens of a prefill, 0 for none.", least=0, commas=True, former=("--prompt",)
    )
    generate: int = option(64, "Tokens of a decode, 0 for none.", least=0)
    streams: tuple[int, ...] = option(
        (1,), "Sequences that decode in one pass, each as many tokens.", least=1, commas=True
    )
    rows: tuple[int, ...] = option(
        (), "Rows of one sequence that are verified in one pass.", least=1, commas=True
    )
    depth: tuple[int, ...] = option(
        (0,), "Tokens that are in the KV cache before each test.", least=0, commas=True
    )
    attention: tuple[AttentionMode, ...] = several(RunOptions, "attention")
    kv_type: tuple[KVChoice, ...] = several(RunOptions, "kv_type")
    activations: str = same(RunOptions, "activations")
    rope_regime: RopeRegime = same(RunOptions, "rope_regime")
    repeat: int = option(5, "Measurements of each test.", least=1)
    fill: str = option(
        "prefill",
        "How depths are reached: by a prefill, or by repeated rows of a short one.",
        choices=("prefill", "synthetic"),
    )
    operators: bool = option(False, "Also measure every operator of every layer.", flag="--ops")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("executor", "quantize", "threads", "streams", "depth", "attention", "kv_type"):
            if len(getattr(self, name)) == 0:
                raise EdgeError(f"{name} is empty: give at least one.")
        if not self.tests:
            raise EdgeError("There is nothing to measure: give prefill or generate above 0, or rows.")

    @property
    def tests(self) -> tuple[Case, ...]:
        """The tests of one configuration, the shallow ones first."""
        found: list[Case] = []
        rows = sorted({1, *self.rows}) if self.rows else []
        for depth in sorted(set(self.depth)):
            found += [Case("prefill", tokens, depth) for tokens in dict.fromkeys(self.prefill) if tokens]
            if self.generate:
                found += [Case("decode", self.generate, depth, each) for each in sorted(set(self.streams))]
            found += [Case("verify", each, depth) for each in rows]
        return tuple(found)

    @property
    def context(self) -> int:
        """Tokens that the deepest test reaches, and as many as a pass of all streams takes."""
        return max(max(case.depth + case.tokens, case.streams) for case in self.tests)
