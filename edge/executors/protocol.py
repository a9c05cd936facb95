"""The executor protocol: the one seam between a model's arithmetic and everything written above it.

Sampling, sessions, speculation, chat and the profiler use this protocol and nothing else; what only some
executors offer has a protocol of its own at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.checkpoints.bita import SoftWeights
from edge.config import KVType, ModelConfig, SparseConfig
from edge.errors import EdgeError
from edge.executors.sampling import DrawOptions, HostSampling, Sampled
from edge.executors.soft import SoftPrompt, SoftRows

FloatArray = npt.NDArray[np.float32]
Logits = Literal["none", "last", "all"]


@dataclass(frozen=True)
class Capabilities:
    """What an executor can do beyond plain decoding.

    batch_invariant: the steps of a pass go through each matrix together, and a step gives the same bits
    whatever stands beside it, cut as it may be. The others run one step after another; their numbers depend
    on how many tokens a step has, within the tolerances of their tests.
    """

    batch_invariant: bool = False
    trees: bool = False
    max_tree: int = 0
    hidden_states: bool = False
    sparse_attention: bool = False
    soft_rows: bool = False
    cache_files: bool = False
    kv_types: tuple[str, ...] = ("float16",)


@dataclass(frozen=True)
class ExecutorInfo:
    """How an executor was opened and what it takes; none of it changes.

    name: in `edge.executors.registry`. tier: what computes, for example `avx512vnni` or `torch 2.13.0`.
    threads: those that work on a step. activations: `int8`, `int16` or `float32`. sparse: the constants of
    sparse attention, None if every query is dense. workspace_bytes: scratch memory beside weights and KV
    caches, 0 where the executor can't tell. mapped_weights: whether the weights are pages of their file,
    which need no memory of their own.
    """

    name: str
    tier: str
    threads: int
    activations: str
    kv_type: KVType
    sparse: SparseConfig | None = None
    workspace_bytes: int = 0
    mapped_weights: bool = False


class KVCache(Protocol):
    """The keys and values of one sequence."""

    @property
    def length(self) -> int:
        """Rows in use."""

    @property
    def capacity(self) -> int:
        """Rows it can grow to: the executor's context."""


@dataclass(frozen=True, eq=False)
class SequenceStep:
    """What a forward pass appends to one sequence, and what is wanted of it.

    cache: of the sequence. tokens: int32 [n], 1 to max_batch ids, appended to it. positions: int32 [n], RoPE
    positions; by default they continue the cache. tree: uint64 [n], n <= 64; bit j of tree[i] says that token
    i sees token j of this step (its own bit included). By default token i sees tokens 0..i. All tokens see
    the whole cache before this step. logits: of no token, of the last one or of all. held: whether rows of
    them are for `Executor.sample` alone, before the next pass: then they may stay where they were computed.
    hidden: whether hidden states are wanted. layers: numbers of the layers whose output is wanted, in the
    order of the answer. soft: s rows more, behind the tokens; positions and tree are of n + s rows then. The
    cache needs room for them during the pass, and keeps none. All other wishes are about tokens alone.
    """

    cache: KVCache
    tokens: Sequence[int] | npt.NDArray[np.int32]
    _: KW_ONLY
    positions: npt.NDArray[np.int32] | None = None
    tree: npt.NDArray[np.uint64] | None = None
    logits: Logits = "last"
    held: bool = False
    hidden: bool = False
    layers: Sequence[int] = ()
    soft: SoftRows | None = None

    @property
    def rows(self) -> int:
        """Of the pass that are this step's."""
        return int(np.size(self.tokens)) + (0 if self.soft is None else int(np.size(self.soft.numbers)))


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step asked for; arrays are owned by the caller.

    logits: float32 [1 or n, vocab_size]. hidden: hidden states after the final norm and before the logit
    scale, float32 [n, hidden_size]. layers: for each wanted layer the residual stream after it, float32
    [n, hidden_size]. soft: logits of the soft rows, float32 [s, vocab_size]. error: why the step failed,
    which has nothing else then.
    """

    logits: FloatArray | None = None
    hidden: FloatArray | None = None
    layers: tuple[FloatArray, ...] = ()
    soft: FloatArray | None = None
    error: EdgeError | None = None


class ExecutorFacts(HostSampling):
    """Sampling on the host, and the facts that never change; executors set their fields when made."""

    _info: ExecutorInfo
    _config: ModelConfig
    _context: int
    _max_batch: int

    @property
    def info(self) -> ExecutorInfo:
        """How it was opened."""
        return self._info

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self._config

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._context

    @property
    def max_batch(self) -> int:
        """Most tokens of one step."""
        return self._max_batch


class OneByOne(ABC):
    """`Executor.forward` for executors that run the steps of a pass one after another."""

    max_batch: Any  # of the executor, as are ...
    capabilities: Any
    info: Any

    def forward(self, steps: Sequence[SequenceStep]) -> list[StepResult]:
        """See `Executor.forward`."""
        check_caches(steps)
        tokens, most = sum(step.rows for step in steps), self.max_batch
        if len(steps) > 1 and tokens > most:
            raise EdgeError(f"A pass takes up to {most} tokens, got {tokens}: give some later.")
        return [self._result_of(step) for step in steps]

    def _result_of(self, step: SequenceStep) -> StepResult:
        try:
            check_soft(step, self.capabilities, self.info.name)
            return self._run_step(step)
        except EdgeError as error:
            return StepResult(error=error)

    @abstractmethod
    def _run_step(self, step: SequenceStep) -> StepResult:
        """Append one step to its cache and run it; if it fails, leave the cache as it was."""


def check_soft(step: SequenceStep, able: Capabilities, executor: str) -> None:
    """EdgeError for soft rows that an executor, by its name, can't take."""
    if step.soft is not None and not able.soft_rows:
        raise EdgeError(
            f"The {executor} executor takes no soft rows here: use native or torch, with dense attention."
        )


class _OfCache(Protocol):
    @property
    def cache(self) -> KVCache: ...


def check_caches(steps: Sequence[_OfCache]) -> None:
    """EdgeError for two steps of one cache."""
    if len({id(step.cache) for step in steps}) < len(steps):
        raise EdgeError("A forward pass takes one step per cache: give the others to later passes.")


class Executor(Protocol):
    """Runs the transformer. Calls on one executor are serialized by it; caches are independent."""

    @property
    def info(self) -> ExecutorInfo:
        """How it was opened."""

    @property
    def config(self) -> ModelConfig:
        """The network that this executor runs."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens, fixed when the executor was made (RoPE depends on it)."""

    @property
    def max_batch(self) -> int:
        """Most tokens of one pass, and of one step."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def new_cache(self) -> KVCache:
        """An empty cache; memory is committed as it fills."""

    def forward(self, steps: Sequence[SequenceStep]) -> list[StepResult]:
        """Append the tokens of every step to its cache and run them; one result per step, in their order.

        What a step gives does not depend on the others of the pass, which have other caches. A step that
        fails fails alone: its cache is left as it was, and its result has the error. That is an EdgeError
        for something that this executor can't do, ContextError past the context, TokenizerError for an id
        outside the vocabulary, NativeError for logits that are not finite. Raises EdgeError, and runs
        nothing, for two steps of one cache or more tokens than it takes in one pass.
        """

    def sample(
        self,
        logits: FloatArray,
        options: DrawOptions,
        history: Sequence[int] | npt.NDArray[np.int32] = (),
        *,
        index: int = 0,
        allowed: npt.NDArray[np.uint32] | None = None,
    ) -> Sampled:
        """The next token for one row of the logits of a result, which stay unchanged.

        history: the tokens that penalties count. index: of the token in its answer; with the seed it
        decides the random number (Philox4x32-10), so that a token is the same however those before it came
        about. allowed: uint32 [ceil(vocab_size / 32)], bit t % 32 of word t // 32 says whether token t may
        be drawn; None allows all. Raises NativeError for logits that are not finite or where nothing is
        allowed, and TokenizerError for an id outside the vocabulary.
        """

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""

    def close(self) -> None:
        """Free the weights and threads; the executor and its caches can't be used afterwards."""


def run_step(executor: Executor, step: SequenceStep) -> StepResult:
    """A pass of one step; raises what it failed with."""
    (result,) = executor.forward([step])
    if result.error is not None:
        raise result.error
    return result


@runtime_checkable
class Observable(Protocol):
    """An executor that reports its operators."""

    def observe(self, observer: Callable[[bytes], None] | None) -> None:
        """Call `observer` with the bytes of libedge's `edge_event` after every operator; None ends it.

        The output that an event points to is valid during the call only. An observer that calls the executor
        gets an EdgeError. What it raises ends the pass, which raises it and leaves its cache as it was.
        """


@runtime_checkable
class Staged(Protocol):
    """An executor that shows what stands between its stages, without times or memory of its own."""

    def report_stages(self, report: Callable[[str, int, npt.NDArray[np.float32]], None] | None) -> None:
        """Call `report(operation, layer, output)` after every stage of a step; None ends it.

        operation: as the native decoder names the same operator. layer: -1 outside the layers. output [rows]
        [columns] is valid during the call only, in which the executor may not be called.
        """


@runtime_checkable
class RepeatsRows(Protocol):
    """An executor whose caches can be filled without a prefill."""

    def repeat(self, cache: KVCache, n: int) -> None:
        """Grow the cache to n rows by repeating those it has: plausible values without their cost."""


@runtime_checkable
class SharesRows(Protocol):
    """An executor whose caches share the rows of a common beginning."""

    def fork(self, cache: KVCache, n: int) -> KVCache:
        """A cache with the first n rows of another. Memory is shared until one of the two writes into it."""

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches; what several share counts once. Where that is a part of something fixed,
        `cache_limit` (int) is how much of it may be in use so that one more sequence finds room.
        """


def shares_rows(executor: Executor) -> bool:
    """Whether it is a `SharesRows`, also behind a trace (whose attributes `isinstance` does not see)."""
    return hasattr(executor, "fork")


def takes_weights(executor: Executor) -> bool:
    """The same of `TakesWeights`."""
    return hasattr(executor, "update")


class NextToken(Protocol):
    """One sequence of `DrawsTokens.decode`, made once for all its passes."""

    rows: int
    """Of the pass that comes."""

    def put(self, token: int, index: int) -> None:
        """The token that the next pass appends. index: of the one drawn then, see `Executor.sample`."""

    def guess(
        self,
        tokens: Sequence[int],
        positions: npt.NDArray[np.int32] | None = None,
        tree: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Guesses at what follows, for that pass alone; it appends them too. positions, tree: of all rows,
        the token's first, as in `SequenceStep`; None for a chain.
        """

    def want(self, hidden: bool, layers: Sequence[int] = ()) -> None:
        """Whether that pass shall give `states`: of these layers, or else the hidden states. Called after
        `guess`.
        """

    @property
    def states(self) -> FloatArray | None:
        """Of all rows of the last pass, [rows, hidden_size], of several layers one behind the other; valid
        until `want` is called again.
        """

    @property
    def right(self) -> Sequence[int]:
        """The rows of guesses that were right in the last pass, along one path from row 0."""


class DrawsTokens(Protocol):
    """An executor that appends a token and draws the next one in one call, for less than `forward` and
    `sample` take.
    """

    def next_token(self, cache: KVCache, options: DrawOptions) -> NextToken:
        """For a sequence whose tokens may be any and are drawn without penalties; no log-probabilities."""

    def decode(self, steps: Sequence[Any]) -> list[list[int] | EdgeError]:
        """The next token of every sequence, and those after the guesses that are what was drawn; or why it
        has none. They are what `forward` and `sample` give, and it raises as `forward` does. A cache has
        grown by the first row and those of `right`, or by all where no token could be drawn.
        """


def draws_tokens(executor: Executor) -> bool:
    """Whether it is a `DrawsTokens` itself. A trace in front of one looks at logits, and a class with another
    `forward` wants to be asked for them.
    """
    runs = next((kind for kind in type(executor).__mro__ if "forward" in vars(kind)), object)
    return "decode" in vars(runs)


@runtime_checkable
class Rests(Protocol):
    """An executor that can do with less memory while nobody asks it."""

    def rest(self) -> None:
        """Give back what comes back by itself with the next pass. For any thread."""


class TakesSoftRows(Protocol):
    """What an executor with `capabilities.soft_rows` offers beside `Executor`."""

    def open_soft(self, weights: SoftWeights) -> SoftPrompt:
        """A soft prompt for steps of this executor; EdgeError if it does not fit, or has numbers that are not
        finite.
        """


@runtime_checkable
class TakesWeights(Protocol):
    """An executor whose weights can be replaced while it is open, as training does."""

    def update(self, tensors: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
        """Put other values in place of some tensors, by the names and shapes of the bundle.

        They are rounded to the nearest codes of the scheme that each tensor has. Caches keep the rows of
        the old weights: truncate them to 0. Raises EdgeError, and changes nothing, for a name or shape that
        is not the network's and for values that are not finite.
        """


@runtime_checkable
class StoresCaches(Protocol):
    """What an executor with `capabilities.cache_files` offers beside `Executor`."""

    @property
    def cache_identity(self) -> Mapping[str, str]:
        """What the rows of a cache depend on, by name; one that differs makes them useless."""

    @property
    def arithmetic(self) -> str:
        """The kernels that computed them: others give the same rows within rounding, not the same bits."""

    def cache_pages(self, cache: KVCache) -> list[npt.NDArray[np.uint8]]:
        """The rows in use as they stand in memory, for a file; borrowed until the cache changes."""

    def restore(self, cache: KVCache, n: int, memory: npt.NDArray[np.uint8]) -> None:
        """Make n rows, the pages of `cache_pages` one after the other, the content of the cache."""
