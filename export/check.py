"""The reference that every artifact carries, and the comparison of a runtime's logits with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.config.attention import AttentionMode
from edge.engine.session import Session
from edge.errors import ArtifactError, ExportError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.registry import NATIVE
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact

if TYPE_CHECKING:
    from edge.executors.protocol import Executor
    from edge.formats.bundle.reader import Bundle

PROMPT = "The three primary colours are red, yellow and blue. Water boils at"
POSITIONS = 4
"""Positions whose logits are compared: the end of the prompt and the greedy tokens after it."""
_MOST_TOKENS = 32
_MOST_WORK = 4e12  # weights x tokens of a reference for sparse attention: a minute or two


@dataclass(frozen=True)
class Reference:
    """tokens: int32 [n]. logits: float32 [POSITIONS, vocab_size], after each of the last POSITIONS tokens.

    Of the exported weights in exact arithmetic (the native executor with float32 activations and KV cache).
    For sparse attention there are so many tokens that the last ones choose among blocks.
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


def make_reference(
    source: Source, context: int, attention: Literal["dense", "sparse"] = "dense"
) -> Reference:
    """Run the fixed prompt on the native executor, in exact arithmetic; the weights stay mapped files.

    attention: what the artifact runs. Raises ExportError when the context is too short for the prompt.
    """
    tokens = source.tokenizer.encode(PROMPT)[: max(0, min(_MOST_TOKENS, context - POSITIONS))]
    if not tokens:
        raise ExportError(
            f"A context of {context} tokens is too short for the check of the artifact; use {2 * POSITIONS} "
            "or more."
        )
    if attention == "sparse":
        tokens = _lengthened(tokens, source, context)
    executor = exact_executor(source.bundle, context, attention)
    try:
        session, rows = Session(executor), []
        logits = session.prefill(tokens)
        assert logits is not None
        rows.append(logits)
        while len(rows) < POSITIONS:
            tokens.append(int(rows[-1].argmax()))
            rows.append(session.step(tokens[-1]))
    finally:
        executor.close()
    return Reference(np.array(tokens, np.int32), np.stack(rows))


def exact_executor(bundle: Bundle, context: int, attention: Literal["dense", "sparse"] = "dense") -> Executor:
    """The native executor with float32 activations and KV cache; the weights stay in their mapped file."""
    mode: AttentionMode = attention
    if attention == "sparse" and bundle.config.sparse is not None:
        mode = "auto"  # a bundle's own constants may be some that the kernels do not take
    options = RunOptions(NATIVE, context, activations="float32", kv_type="float32", attention=mode, mmap=True)
    return open_executor(bundle, options)


def _lengthened(tokens: list[int], source: Source, context: int) -> list[int]:
    """The tokens and random ones, up to where queries choose among blocks; unchanged if that takes long."""
    sparse = source.config.sparse or SparseConfig()
    length = min(_first_choice(sparse) + 4 * sparse.block_size, context - POSITIONS)
    weights = sum(info.rows * info.columns for info in source.tensors.values())
    if length * weights > _MOST_WORK:
        return tokens
    more = np.random.default_rng(0).integers(source.config.vocab_size, size=max(length - len(tokens), 0))
    return [*tokens, *more.tolist()]


def _first_choice(sparse: SparseConfig) -> int:
    """The longest sequence in which every query still reads everything."""
    return max(sparse.dense_len, (sparse.topk + sparse.local_blocks) * sparse.block_size)


def with_reach(result: CheckResult, reference: Reference, config: ModelConfig) -> CheckResult:
    """The result for an artifact with sparse attention; says so if the reference was too short to choose."""
    dense = _first_choice(config.sparse or SparseConfig())
    if len(reference.tokens) > dense:
        return result
    remark = (
        f"The reference has {len(reference.tokens)} tokens and attention chooses blocks only beyond {dense}, "
        "so this was not checked."
    )
    return replace(result, remarks=(*result.remarks, remark))


def run_executor(executor: Executor, reference: Reference) -> npt.NDArray[np.float32]:
    """Logits [POSITIONS, vocab_size] of the reference's tokens: prefill, then one by one. Closes it."""
    try:
        session = Session(executor)
        logits = session.prefill(reference.prompt)
        assert logits is not None
        rows = [logits, *map(session.step, reference.answer)]
    finally:
        executor.close()
    return np.stack(rows)


def _log_softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result
