"""The reference that every artifact carries, and the comparison of a runtime's logits with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.artifact import Artifact
from edge.errors import ArtifactError, ExportError
from edge.tokenizer import load_tokenizer
from export.source import Source

if TYPE_CHECKING:
    from edge.bundle.reader import Bundle
    from edge.executors.base import Executor
    from edge.executors.native import NativeExecutor

PROMPT = "The three primary colours are red, yellow and blue. Water boils at"
POSITIONS = 4
"""Positions whose logits are compared: the end of the prompt and the greedy tokens after it."""
_MOST_TOKENS = 32


@dataclass(frozen=True)
class Reference:
    """tokens: int32 [n]. logits: float32 [POSITIONS, vocab_size], after each of the last POSITIONS tokens.

    Of the exported weights in exact arithmetic (the native executor with float32 activations and KV cache).
    The last POSITIONS - 1 tokens are greedy answers to those before: a runtime should take the others as a
    prompt and these one by one, so that prefill, decode and the cache are all compared.
    """

    tokens: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]

    @property
    def prompt(self) -> list[int]:
        """The tokens to prefill."""
        return [int(token) for token in self.tokens[: len(self.tokens) - POSITIONS + 1]]

    @property
    def answer(self) -> list[int]:
        """The tokens to decode one by one after it."""
        return [int(token) for token in self.tokens[len(self.tokens) - POSITIONS + 1 :]]


@dataclass(frozen=True)
class CheckResult:
    """How near a runtime's logits are to the reference.

    divergence: largest KL divergence (nats) of a position; agreement: share of positions with the same best
    token; largest_error: of a logit. limit: the divergence up to which the check passes. remarks: what this
    check did not cover.
    """

    runtime: str
    version: str
    divergence: float
    agreement: float
    largest_error: float
    limit: float
    remarks: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether the divergence is within the limit."""
        return self.divergence <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "remarks": list(self.remarks), "passed": self.passed}


def compare_logits(
    reference: Reference,
    logits: npt.NDArray[np.floating[Any]],
    *,
    runtime: str,
    version: str,
    limit: float,
    remarks: tuple[str, ...] = (),
) -> CheckResult:
    """The result for a runtime's logits [POSITIONS, vocab_size]; ArtifactError if their shape is wrong."""
    if logits.shape != reference.logits.shape or not np.isfinite(logits).all():
        raise ArtifactError(
            f"{runtime} gave logits of shape {list(logits.shape)} (expected {list(reference.logits.shape)}), "
            "or values that are not finite; export the model again."
        )
    wanted, found = _log_softmax(reference.logits), _log_softmax(logits)
    divergence = (np.exp(wanted) * (wanted - found)).sum(axis=-1)
    return CheckResult(
        runtime=runtime,
        version=version,
        divergence=float(max(divergence.max(), 0.0)),
        agreement=float(np.mean(wanted.argmax(axis=-1) == found.argmax(axis=-1))),
        largest_error=float(np.abs(reference.logits.astype(np.float64) - logits).max()),
        limit=limit,
        remarks=remarks,
    )


def read_reference(artifact: Artifact) -> Reference:
    """The reference in the folder."""
    tokens, logits = artifact.reference
    if tokens.ndim != 1 or len(tokens) < POSITIONS or logits.shape != (POSITIONS, artifact.config.vocab_size):
        raise ArtifactError(
            f"The reference of '{artifact.path}' has the wrong shape; export the model again."
        )
    return Reference(tokens, logits)


def make_reference(source: Source, context: int) -> Reference:
    """Run the fixed prompt on the native executor, in exact arithmetic; the weights stay mapped files.

    Raises ExportError when the context is too short for it.
    """
    tokenizer = load_tokenizer(source.tokenizer_files, source.config)
    tokens = tokenizer.encode(PROMPT)[: max(0, min(_MOST_TOKENS, context - POSITIONS))]
    if not tokens:
        raise ExportError(
            f"A context of {context} tokens is too short for the check of the artifact; use {2 * POSITIONS} "
            "or more."
        )
    executor = exact_executor(source.bundle, context)
    try:
        cache = executor.new_cache()
        rows = []
        given = tokens
        for _ in range(POSITIONS):
            result = executor.forward(cache, given)
            assert result.logits is not None
            rows.append(result.logits[-1].copy())
            given = [int(rows[-1].argmax())]
            tokens = [*tokens, *given]
    finally:
        executor.close()
    return Reference(np.array(tokens[:-1], np.int32), np.stack(rows))


def exact_executor(bundle: Bundle, context: int) -> NativeExecutor:
    """The native executor with float32 activations and KV cache; the weights stay in their mapped file."""
    from edge.executors.native import NativeExecutor

    return NativeExecutor(
        bundle, context=context, activations="float32", kv_type="float32", attention="dense", mmap=True
    )


def run_executor(executor: Executor, reference: Reference) -> npt.NDArray[np.float32]:
    """Logits [POSITIONS, vocab_size] of the reference's tokens: prefill, then one by one. Closes it."""
    try:
        cache = executor.new_cache()
        rows = []
        for given in (reference.prompt, *([token] for token in reference.answer)):
            result = executor.forward(cache, given)
            assert result.logits is not None
            rows.append(result.logits[-1].copy())
    finally:
        executor.close()
    return np.stack(rows)


def program_version() -> str:
    """The version of this program."""
    return metadata.version("minicpm-edge")


def _log_softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result
