"""One sequence on an executor: its KV cache, the tokens in it, and the reuse of what a new prompt shares.

A session belongs to one thread at a time, and to one answer (`edge.engine.generation.Stream`) until that has
ended: another thread gets an EdgeError, and the answer goes on undisturbed. Several sessions may use one
executor from several threads; with a common scheduler their steps go through it together.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from edge.engine.scheduler import Forward, Scheduler
from edge.engine.speculative.drafter import Accepted
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import ContextError, EdgeError
from edge.executors.checks import token_ids, whole_number
from edge.executors.protocol import (
    DrawsTokens,
    Executor,
    Logits,
    NextToken,
    SequenceStep,
    StoresCaches,
)
from edge.executors.sampling import DrawOptions
from edge.executors.soft import SoftPrompt, SoftRows
from edge.formats.kv_file import read_cache, write_cache
from edge.system.guards import OneThread

Tokens = Sequence[int] | npt.NDArray[np.int32]


class Answer(Protocol):
    """What may hold a session: see `edge.engine.generation.Stream`."""

    def give_way(self) -> None:
        """End, because somebody else wants the session; EdgeError if it can't."""


class Session:
    """A KV cache and a mirror of its tokens, which agree after every call, failed ones included.

    reused_tokens, computed_tokens: how many prompt and answer tokens were found in the cache and how many the
    executor had to run, over the session's life.
    """

    def __init__(
        self, executor: Executor, scheduler: Scheduler | None = None, *, speculate: bool = True
    ) -> None:
        """scheduler: that of the executor's other sessions, whose passes this one joins; or None. speculate:
        let what the scheduler has for that guess how answers go on.
        """
        self.executor = executor
        self.scheduler = scheduler or Scheduler(executor)
        self.reused_tokens = 0
        self.computed_tokens = 0
        self._cache = executor.new_cache()
        self._tokens = np.empty(256, np.int32)  # grows by doubling
        self._alone = OneThread("session")
        self._answer: weakref.ref[Answer] | None = None
        self._opened = 0
        self._root = 0  # the row that a tree grows from
        self._unsure = False  # a tree is being verified: rows after the root may go
        speculation = self.scheduler.speculation if speculate else None
        self.speculation = None if speculation is None else speculation.sequence()
        """What guesses how this sequence goes on."""
        self._generation: int | None = None
        self._note_generation()

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @property
    def context(self) -> int:
        """Most tokens that the cache can hold."""
        return self._cache.capacity

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The tokens in the cache, int32 [length]; a view that the next call may change."""
        return self._tokens[: self.length]

    def begin(self, answer: Answer | None = None) -> None:
        """End the answer that holds this session, as any other use of it does, and let `answer` hold it.

        Raises EdgeError if that one belongs to another thread.
        """
        with self.used():
            self._answer = None if answer is None else weakref.ref(answer)

    def used(self) -> AbstractContextManager[None]:
        """For this thread alone; the answer that holds the session ends, unless this is its own doing."""
        return _Use(self._alone, self._end_answer)

    def _end_answer(self) -> None:
        if self._answer is not None and (holder := self._answer()) is not None:
            holder.give_way()

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """The same, and no pass is under way any more."""
        with self.used():
            self.scheduler.settle(self)
            if self._unsure:
                self.undo_step()
            yield

    def shared_prefix(self, prompt: Tokens) -> int:
        """How many tokens of `prompt` stand at the start of the cache."""
        new = token_ids(prompt)
        n = min(len(new), self.length)
        different = np.flatnonzero(new[:n] != self._tokens[:n])
        return int(different[0]) if different.size else n

    def check_prompt(self, prompt: Tokens) -> None:
        """Raise EdgeError for an empty prompt and ContextError for one that does not fit."""
        if len(prompt) == 0:
            raise EdgeError("The prompt is empty: give at least one word.")
        if len(prompt) > self.context:
            raise ContextError(
                f"The prompt takes {len(prompt)} tokens and the context holds {self.context}: "
                "shorten it or open the model with a longer context."
            )

    def plan(self, prompt: Tokens) -> npt.NDArray[np.int32]:
        """Cut the cache back to what it shares with `prompt`, or take more that others share with it.

        Returns the tokens that it lacks, int32. The last one is always one of them: its logits are what the
        caller came for. Raises as `check_prompt` does.
        """
        new = token_ids(prompt)
        self.check_prompt(new)
        with self._settled():
            reused = min(self.shared_prefix(new), len(new) - 1)
            prefixes = self.scheduler.prefixes
            found = None if prefixes is None else prefixes.find(new[:-1], more_than=reused)
            if found is None:
                self._truncate(reused)
            else:
                self._cache, reused = found
                self._tokens = new.copy()
                self._note_generation()
                if self.speculation is not None:
                    self.speculation.accepted(Accepted(0, new[:reused]))
            self.reused_tokens += reused
        return new[reused:]

    def remember(self, *, goes_on: bool = False) -> None:
        """Let other sessions find what this one holds. goes_on: see `PrefixCache.put`."""
        prefixes = self.scheduler.prefixes
        if prefixes is not None and self._generation == prefixes.generation:
            with suppress(EdgeError, OSError):  # an answer is worth more than what may be found of it later
                prefixes.put(self.tokens, self._cache, goes_on=goes_on)

    def prefill(
        self, prompt: Tokens, cancelled: Callable[[], bool] = lambda: False
    ) -> npt.NDArray[np.float32] | None:
        """Make `prompt` the content of the cache, computing only what it does not share with the present one.

        Returns the logits of the last token, float32 [vocab_size]; None if `cancelled` said so between two
        chunks (the cache then holds the part that was done). Raises as `check_prompt` does.
        """
        with self.used():
            return self._run(Forward(self, self.plan(prompt), cancelled))

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Append one token; returns the logits after it, float32 [vocab_size]."""
        with self._settled():
            logits = self._run(Forward(self, token_ids([token])))
        assert logits is not None
        return logits

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        kept = whole_number(length, "the length to keep")
        if kept < 0:
            raise EdgeError(f"A session can't be cut to {kept} tokens: give 0 or more.")
        with self._settled():
            self._truncate(kept)

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def check_files(self) -> None:
        """Raise EdgeError if the executor can't keep its cache in a file."""
        self._store()

    def save(self, path: str | Path) -> int:
        """Write the cache and its tokens to a file, atomically; returns its size in bytes."""
        store = self._store()
        with self._settled():
            return write_cache(path, store.cache_identity, self.tokens, store.cache_pages(self._cache))

    def load(self, path: str | Path) -> None:
        """Make what `save` wrote the content of the cache.

        Raises EdgeError, and changes nothing, for a file of another model or setting or a damaged one, and
        ContextError for one that does not fit.
        """
        store = self._store()
        stored = read_cache(path, store.cache_identity)
        count = len(stored.tokens)
        if count > self.context:
            raise ContextError(
                f"The KV cache '{path}' holds {count} tokens and the context {self.context}: open the model "
                "with a longer context."
            )
        with self._settled():
            store.restore(self._cache, count, stored.memory)
            self._tokens = np.array(stored.tokens, np.int32)
            self._generation = None  # other kernels may have computed them: they are for this session alone
            if self.speculation is not None:
                self.speculation.accepted(Accepted(0, self._tokens))

    def _truncate(self, length: int) -> None:
        if length < self.length:
            self.executor.truncate(self._cache, length)
        if length == 0:
            self._note_generation()

    def _note_generation(self) -> None:
        """Which weights compute what the cache holds from now on."""
        prefixes = self.scheduler.prefixes
        self._generation = 0 if prefixes is None else prefixes.generation

    def _store(self) -> StoresCaches:
        if not self.executor.capabilities.cache_files:
            raise EdgeError("This executor can't keep its KV cache in a file: use the native one.")
        return cast(StoresCaches, self.executor)

    def _run(self, forward: Forward) -> npt.NDArray[np.float32] | None:
        before = self.length
        try:
            self.scheduler.submit(forward)
            self.scheduler.collect(forward)
        finally:
            self.scheduler.withdraw(forward)
        if forward.error is not None:
            raise forward.error
        if self.speculation is not None:
            self.speculation.accepted(Accepted(before, self.tokens[before:].copy()))
        return forward.logits

    def open_step(
        self,
        tokens: npt.NDArray[np.int32],
        wanted: Logits,
        *,
        tree: DraftTree = NOTHING,
        hidden: bool = False,
        layers: tuple[int, ...] = (),
        held: bool = False,
        soft: SoftPrompt | None = None,
    ) -> SequenceStep:
        """The step that appends `tokens`, and a tree behind the last; `close_step` or `undo_step` follows it.

        A step with a tree wants all logits. hidden, layers, held: see `SequenceStep`. soft: of the soft rows
        in the tree's groups.
        """
        before, root = self.length, len(tokens) - 1
        if len(tree):
            tokens, wanted = np.concatenate([tokens, np.array(tree.tokens, np.int32)]), "all"
        end = before + len(tokens)
        self._reserve(before, end)
        # Written first: after an interrupt at any point the mirror covers whatever length the cache has.
        self._tokens[before:end] = tokens
        self._opened, self._root = before, before + root
        self._unsure = len(tree) > 0
        rows = None
        if tree.group:
            assert soft is not None
            rows = SoftRows(soft, np.tile(np.arange(tree.group, dtype=np.int32), len(tree) + 1))
        if not len(tree) or (tree.is_chain and rows is None):
            return SequenceStep(
                self._cache, tokens, logits=wanted, hidden=hidden, layers=layers, held=held, soft=rows
            )
        return SequenceStep(
            self._cache,
            tokens,
            positions=before + tree.positions(root),
            tree=tree.masks(root),
            logits=wanted,
            hidden=hidden,
            layers=layers,
            held=held,
            soft=rows,
        )

    def next_token(self, options: DrawOptions) -> NextToken:
        """What `open_next` is for, see `DrawsTokens`; until another prompt is planned."""
        return cast(DrawsTokens, self.executor).next_token(self._cache, options)

    def open_next(self, token: int, tree: DraftTree = NOTHING) -> None:
        """A step that appends one token, and a tree behind it, will be run; `close_next` or `undo_step`
        follows it.
        """
        before = self.length
        end = before + 1 + len(tree)
        self._reserve(before, end)
        self._tokens[before] = token
        self._opened = self._root = before
        self._unsure = len(tree) > 0
        if self._unsure:
            self._tokens[before + 1 : end] = tree.tokens

    def _reserve(self, used: int, end: int) -> None:
        """Room for so many tokens."""
        if end > len(self._tokens):
            grown = np.empty(max(end, 2 * len(self._tokens)), np.int32)
            grown[:used] = self._tokens[:used]
            self._tokens = grown

    def close_step(self, path: Sequence[int] = ()) -> None:
        """The step has been computed; of its tree the nodes of `path` stay."""
        if self._unsure:
            first, rows = self._root + 1, len(path)
            if list(path) != list(range(rows)):
                kept = [first + node for node in path]
                tokens = self._tokens[kept]
                self.executor.keep(self._cache, first, kept)
                self._tokens[first : first + rows] = tokens
            elif first + rows < self.length:
                self.executor.truncate(self._cache, first + rows)
            self._unsure = False
        self.computed_tokens += self.length - self._opened

    def close_next(self, tokens: Sequence[int]) -> None:
        """What `open_next` began has been computed, and the cache has the rows that were right; of them those
        of `tokens`, the guesses that stay, are the first.
        """
        end = self._root + 1 + len(tokens)
        if self._unsure:
            self._tokens[self._root + 1 : end] = tokens
            if end < self.length:
                self.executor.truncate(self._cache, end)
            self._unsure = False
        self.computed_tokens += end - self._opened

    def undo_step(self) -> None:
        """Leave the cache as it was before the step."""
        self._truncate(self._opened)
        self._unsure = False


class _Use(AbstractContextManager[None]):
    """A thread's use of a session. A class, as one is made for every token and a generator costs more."""

    def __init__(self, alone: OneThread, begin: Callable[[], None]) -> None:
        """begin: called when the thread is alone."""
        self._alone, self._begin = alone, begin

    def __enter__(self) -> None:
        self._alone.__enter__()
        try:
            self._begin()
        except BaseException:
            self._alone.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._alone.__exit__()
