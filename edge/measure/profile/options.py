"""What to measure: one frozen description, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.config import KVChoice
from edge.config.attention import AttentionMode
from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.system.options import check_options, option, same, several

Test = Literal["prefill", "decode"]


@dataclass(frozen=True)
class ProfileOptions:
    """The tests are every combination of executor, quantize, threads, attention and kv_type with every depth,
    and there a prefill of each length in `prefill` and a decode of `generate` tokens.

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
    depth: tuple[int, ...] = option(
        (0,), "Tokens that are in the KV cache before each test.", least=0, commas=True
    )
    attention: tuple[AttentionMode, ...] = several(RunOptions, "attention")
    kv_type: tuple[KVChoice, ...] = several(RunOptions, "kv_type")
    activations: str = same(RunOptions, "activations")
    repeat: int = option(5, "Measurements of each test.", least=1)
    fill: str = option(
        "prefill",
        "How depths are reached: by a prefill, or by repeated rows of a short one.",
        choices=("prefill", "synthetic"),
    )
    operators: bool = option(False, "Also measure every operator of every layer.", flag="--ops")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("executor", "quantize", "threads", "depth", "attention", "kv_type"):
            if len(getattr(self, name)) == 0:
                raise EdgeError(f"{name} is empty: give at least one.")
        if not self.tests:
            raise EdgeError("There is nothing to measure: give prefill or generate (or both) above 0.")

    @property
    def tests(self) -> tuple[tuple[Test, int, int], ...]:
        """(test, tokens, depth) of one configuration, the shallow ones first."""
        found: list[tuple[Test, int, int]] = []
        for depth in sorted(set(self.depth)):
            found += [("prefill", tokens, depth) for tokens in dict.fromkeys(self.prefill) if tokens]
            found += [("decode", self.generate, depth)] if self.generate else []
        return tuple(found)

    @property
    def context(self) -> int:
        """Tokens that the deepest test reaches."""
        return max(depth + tokens for _, tokens, depth in self.tests)
