"""Who gets the rows of a pass: the tokens of all sequences that are under way go through the executor
together.

No thread works for the scheduler. Whoever waits for something (`Scheduler.collect`) runs passes until it is
there, for all jobs at once; the others that wait meanwhile find theirs done. So one sequence costs no
hand-over between threads, and nothing is computed while nobody waits. A server has a thread that waits for
all of its answers (`edge.engine.driver`).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from edge.engine.costs import PassCosts
from edge.engine.prefix_cache import PrefixCache
from edge.engine.speculative.drafter import Budget
from edge.engine.speculative.drafting import Drafting, is_uniform
from edge.engine.speculative.sequence import PassCost
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import ContextError, EdgeError
from edge.executors.drafts import DraftAhead
from edge.executors.protocol import (
    DrawsTokens,
    Executor,
    FloatArray,
    Logits,
    NextToken,
    Rests,
    SequenceStep,
    StepResult,
    draws_tokens,
)
from edge.system.guards import OneCall
from edge.system.memory import available_memory
from edge.system.units import format_bytes

PASS_SECONDS = 0.045
"""What a pass may take while sequences decode: prompts that join it get as many rows as fit into that."""

_ALWAYS_THERE = 64 << 20  # bytes: asking the system about fewer is not worth its time
_LEAST_MIXED = 64  # rows of a pass with prompts that tells what rows cost: most of theirs have no logits
_LONGEST_CHAIN = 16  # rows of a step with guesses, where the executor has no trees
_LEAST_ROWS = 8  # of a prompt, however long a pass takes: it must come to an end


class Stepped(Protocol):
    """What a scheduler uses of a session, `edge.engine.session.Session`."""

    @property
    def length(self) -> int:
        """Tokens in its cache."""

    def open_step(
        self,
        tokens: npt.NDArray[np.int32],
        wanted: Logits,
        *,
        tree: DraftTree = NOTHING,
        hidden: bool = False,
        held: bool = False,
    ) -> SequenceStep:
        """The step that appends `tokens`, and a tree behind the last; `close_step` or `undo_step` follows
        it.
        """

    def close_step(self, path: Sequence[int] = ()) -> None:
        """The step has been computed; of its tree the nodes of `path` stay."""

    def undo_step(self) -> None:
        """Leave the cache as it was before the step."""


class Job(ABC):
    """Tokens that go through the executor for one session, and what comes of their logits.

    most_rows: tokens in the cache when it ends, at most or as far as can be told.

    The scheduler calls its methods one at a time, in whichever thread runs the pass. todo: int32, the
    tokens that are not in the cache yet. decodes: whether it has had its first logits: then every pass
    should take it along. error: what ended it before its time.
    """

    def __init__(self, session: Stepped, todo: npt.NDArray[np.int32], cancelled: Callable[[], bool]) -> None:
        self.session = session
        self.todo = todo
        self.most_rows = session.length + len(todo)
        self.cancelled = cancelled
        self.decodes = False
        self.submitted = 0.0
        self.error: BaseException | None = None
        self.abandoned = False  # nobody waits for it any more: it leaves by itself
        self.tree = NOTHING
        """Guesses behind the last token, for the next pass."""
        self._opened = 0

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether whoever waits for it has something to take, or nothing more to wait for."""

    @property
    @abstractmethod
    def wants_rows(self) -> bool:
        """Whether it goes on by itself: it has not ended, and is not too far ahead of its reader."""

    @abstractmethod
    def cancel(self) -> None:
        """End, because `cancelled` said so."""

    @abstractmethod
    def take_logits(self, logits: FloatArray) -> None:
        """Go on from the logits after the last of its tokens; sets `todo`, or ends."""

    @abstractmethod
    def publish(self, seconds: float, now: float) -> None:
        """Show the outcome of a pass, which took so long and ended then."""

    @property
    def depth(self) -> int:
        """Rows of its cache."""
        return self.session.length

    @property
    def speculates(self) -> bool:
        """Whether it has something that guesses how it goes on."""
        return False

    def wants_to_guess(self) -> bool:
        """Whether it does in the pass that comes; asked once for each."""
        return False

    def propose(self, budget: Budget) -> DraftTree:
        """Guesses behind the last token of `todo`."""
        return NOTHING

    @property
    def search_seconds(self) -> float:
        """Of the last pass, for guesses in the next one."""
        return 0.0

    def take_search(self) -> DraftAhead | None:
        """See `SequenceSpeculation.take_search`."""
        return None

    def charge(self, seconds: float) -> None:  # noqa: B027 - most do not guess
        """See `SequenceSpeculation.charge`."""

    def settle(self, cost: PassCost) -> None:  # noqa: B027 - most do not guess
        """What a pass took for one that decodes, see `SequenceSpeculation.settle`."""

    def open(self, rows: int) -> SequenceStep:
        """The step of the next `rows` tokens."""
        self._opened = rows
        return self.session.open_step(self.todo[:rows], "last" if rows == len(self.todo) else "none")

    def undo(self) -> None:
        """The pass was interrupted: leave the cache as it was."""
        self.session.undo_step()

    def close(self, result: StepResult) -> None:
        """Take what came of the step."""
        if result.error is not None:
            self.undo()
            self.error = result.error
            return
        self.session.close_step()
        self.todo = self.todo[self._opened :]
        if result.logits is not None:
            self.take_logits(result.logits[-1])
            self.decodes = True


class DrawingJob(Job):
    """A job whose tokens may be drawn in the call that runs their pass (`DrawsTokens`)."""

    @property
    @abstractmethod
    def is_plain(self) -> bool:
        """Whether all that it wants of the pass that comes is to append its token, with guesses or without,
        and have the next ones drawn.
        """

    @abstractmethod
    def open_next(self) -> NextToken:
        """The step that does this."""

    @abstractmethod
    def close_next(self, drawn: Sequence[int] | EdgeError) -> None:
        """Take what came of it."""


class Forward(Job):
    """A prompt or a token by itself; the caller wants the logits after it."""

    def __init__(
        self,
        session: Stepped,
        todo: npt.NDArray[np.int32],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(session, todo, cancelled)
        self.decodes = len(todo) == 1
        self.logits: FloatArray | None = None
        self._ended = False

    @property
    def is_ready(self) -> bool:
        """After the last token."""
        return self._ended or self.error is not None

    @property
    def wants_rows(self) -> bool:
        """Until the last token."""
        return not self.is_ready

    def cancel(self) -> None:
        """The cache holds the part that was done."""
        self._ended = True

    def take_logits(self, logits: FloatArray) -> None:
        """They are all that is wanted."""
        self.logits = logits

    def publish(self, seconds: float, now: float) -> None:
        """Nothing goes on after the logits."""
        self._ended = self._ended or self.logits is not None


class Scheduler:
    """The passes of one executor. Safe to use from several threads."""

    def __init__(
        self,
        executor: Executor,
        prefixes: PrefixCache | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """prefixes: where sessions find what others have computed. speculation: what guesses for them."""
        self.executor = executor
        self.prefixes = prefixes
        self.speculation = speculation
        self.costs = PassCosts()
        self._draws = draws_tokens(executor)
        self._jobs: list[Job] = []
        self._turn = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # the same lock, which is quicker taken by itself
        self._running: int | None = None  # the thread that runs a pass
        self._in_pass: tuple[Job, ...] = ()
        self._process = OneCall("model")

    def submit(self, job: Job) -> None:
        """Let a job take part in the passes from now on, until `withdraw`.

        Raises ContextError, with the numbers, if memory does not suffice for it beside those that are there.
        """
        job.submitted = perf_counter()
        self._process.check_process()
        with self._lock:
            # What is left of an earlier job of the session, whose end was interrupted.
            self._jobs = [each for each in self._jobs if each.session is not job.session]
            self._check_memory(job)
            self._jobs.append(job)

    def withdraw(self, job: Job) -> None:
        """Forget a job, after the pass that it is part of. Does nothing for one that is not there."""
        if self._process.is_inherited:
            return  # nobody runs a pass here
        with self._lock:
            self._jobs = [each for each in self._jobs if each is not job]
            while job in self._in_pass and self._running != threading.get_ident():
                self._changed.wait()

    def settle(self, session: Stepped) -> None:
        """Return when no pass is under way for a session, whose last job may have been abandoned in one."""
        with self._lock:
            while self._running not in (None, threading.get_ident()) and any(
                job.session is session for job in self._in_pass
            ):
                self._changed.wait()

    def collect(self, job: Job) -> None:
        """Return when the job is ready or has failed, and run passes until then.

        An interrupt (KeyboardInterrupt) undoes the pass for all that had a part in it.
        """
        self._process.check_process()
        leads = False
        while True:
            try:
                with self._lock:
                    if self._running == threading.get_ident():
                        raise EdgeError(
                            "This model is in the middle of a call: its observer must not use it."
                        )
                    while self._running is not None and not job.is_ready:
                        self._changed.wait()
                    if not (job.is_ready or job.wants_rows):
                        job.error = EdgeError("The answer was interrupted in the middle of a step.")
                    if job.is_ready:
                        return
                    leads = True
                    self._running = threading.get_ident()
                self._run_pass()
            finally:
                if leads:
                    with self._lock:
                        self._running, self._in_pass = None, ()
                        self._changed.notify_all()
                    leads = False

    def run_pass(self) -> None:
        """Run one pass for all jobs, or return when the one that another thread runs is over.

        For who waits for several jobs at once (`edge.engine.driver`).
        """
        self._process.check_process()
        with self._lock:
            if self._running is not None:
                self._changed.wait()
                return
            self._running = threading.get_ident()
        try:
            self._run_pass()
        finally:
            with self._lock:
                self._running, self._in_pass = None, ()
                self._changed.notify_all()

    def rest(self) -> None:
        """Give back the memory that comes back by itself with the next pass, if the executor can."""
        if isinstance(self.executor, Rests):
            self.executor.rest()

    def _check_memory(self, job: Job) -> None:
        config, kv_type = self.executor.config, self.executor.info.kv_type
        rows = [max(0, each.most_rows - each.session.length) for each in (*self._jobs, job)]
        needed = sum(rows) * config.kv_bytes_per_token(kv_type)
        if needed < _ALWAYS_THERE or (free := available_memory()) is None or needed <= free:
            return
        if self.prefixes is not None:
            self.prefixes.leave_memory()
            free = available_memory() or 0
        if needed > free:
            raise ContextError(
                f"The KV caches of {len(rows)} sequences will take {format_bytes(needed)} for {sum(rows)} "
                f"more tokens, but only {format_bytes(free)} of memory are available: wait until others have "
                "ended, lower max_new_tokens, or choose another kv_type."
            )

    def _run_pass(self) -> None:
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.abandoned]
            jobs = tuple(self._jobs)
            for job in jobs:
                _cancel_if_wanted(job)
            shares = self._shares([job for job in jobs if job.wants_rows])
            self._in_pass = tuple(job for job, _ in shares)
        drafting = self._draft(shares) if any(job.speculates for job, _ in shares) else None
        started = perf_counter()
        plain = self._draws and all(isinstance(job, DrawingJob) and job.is_plain for job, _ in shares)
        uniform = plain or is_uniform(shares)
        run = cast(DrawsTokens, self.executor).decode if plain else self.executor.forward
        opened: list[Job] = []
        steps: list[Any] = []
        closed = 0
        try:
            for job, rows in shares:
                try:
                    steps.append(cast(DrawingJob, job).open_next() if plain else job.open(rows))
                except Exception as error:
                    job.error = error
                else:
                    opened.append(job)
            if not opened:
                return
            try:
                results: list[Any] = run(steps)
            except EdgeError as error:  # of the pass: the model is closed, for example
                results = [error if plain else StepResult(error=error) for _ in steps]
            for job, result in zip(opened, results, strict=True):
                closed += 1
                try:
                    if plain:
                        cast(DrawingJob, job).close_next(result)
                    else:
                        job.close(result)
                except Exception as error:  # of a sampler, a tokenizer: of this job in any case
                    job.error = error
        except BaseException as error:
            if closed > 0:  # the thread that is interrupted need not be the one whose job this is
                interrupted = EdgeError("The answer was interrupted in the middle of a step.")
                interrupted.__cause__ = error
                opened[closed - 1].error = interrupted
            raise
        finally:
            for job in opened[closed:]:
                job.undo()
            now = perf_counter()
            drafted = 0.0 if drafting is None else drafting.seconds
            for job in opened[:closed]:
                job.publish(drafted + now - started, now)
        rows, seconds = sum([step.rows for step in steps]), now - started
        if drafting is not None:
            seconds -= sum([job.search_seconds for job in opened])
            drafting.settle(seconds)
        if uniform or rows >= _LEAST_MIXED:
            self.costs.record(rows, max([job.depth for job in opened]), seconds)

    def _draft(self, shares: list[tuple[Job, int]]) -> Drafting:
        able = self.executor.capabilities
        return Drafting(
            shares,
            self.costs,
            most_rows=self.executor.max_batch,
            most_in_tree=able.max_tree or _LONGEST_CHAIN,
            branches=able.trees,
        )

    def _shares(self, jobs: list[Job]) -> list[tuple[Job, int]]:
        """Who takes part in the next pass, and with how many tokens.

        First one step of each sequence that decodes, which has several tokens where a grammar leaves no
        choice, then prompts: all rows that are left, or beside sequences that decode as many as keep the pass
        short. Prompts share them equally, so that a short one need not wait for a long one.
        """
        if not jobs:
            return []
        self._turn += 1
        if len(jobs) <= self.executor.max_batch and all(job.decodes and len(job.todo) == 1 for job in jobs):
            return [(job, 1) for job in jobs]
        start = self._turn % len(jobs)
        prompts = [job for job in jobs if not job.decodes]
        most = self.executor.max_batch
        kept = min(_LEAST_ROWS, max(1, most // 2)) if prompts and (most > 1 or self._turn % 2) else 0
        shares: list[tuple[Job, int]] = []
        within = most
        if len(jobs) > 1 and any(len(job.todo) > 1 for job in jobs):
            depth = max(job.session.length for job in jobs)
            within = max(_LEAST_ROWS, self.costs.rows_within(PASS_SECONDS, depth))
        for job in (*jobs[start:], *jobs[:start]):
            rows = min(len(job.todo), most - kept, within)
            if job.decodes and rows > 0:
                shares.append((job, rows))
                most -= rows
        if shares and prompts:
            used = sum(rows for _, rows in shares)
            most = min(most, max(_LEAST_ROWS, within - used))
        for left, job in zip(
            range(len(prompts), 0, -1), sorted(prompts, key=lambda job: len(job.todo)), strict=True
        ):
            rows = min(len(job.todo), -(-most // left))
            if rows > 0:
                shares.append((job, rows))
                most -= rows
        return shares


def _cancel_if_wanted(job: Job) -> None:
    try:
        if job.wants_rows and job.cancelled():
            job.cancel()
    except Exception as error:  # what asks belongs to the job, and need not be our own
        job.error = error
