"""One answer, token by token: what each becomes as text, what ends it, and what it costs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge.engine.answer_settings import answer_ends
from edge.engine.completion import Chunk, Completion, StopReason
from edge.engine.constraints.constraint import Constraint
from edge.engine.sampling import Sampler
from edge.engine.scheduler import DrawingJob
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.engine.speculative.drafter import Accepted, Budget
from edge.engine.speculative.sequence import PassCost
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.engine.stop_strings import StopMatcher
from edge.errors import EdgeError
from edge.executors.drafts import DraftAhead
from edge.executors.protocol import FloatArray, Logits, NextToken, SequenceStep, StepResult
from edge.executors.sampling import Sampled
from edge.text.tokenizer.base import StreamDecoder, Tokenizer

_EXPECTED_TOKENS = 512  # of an answer without a limit, when memory is looked at
_EMPTY = np.empty(0, np.int32)
_MOST_UNREAD = 4
"""Tokens that an answer may be ahead of its reader, while passes are run for others."""


class Answer(DrawingJob):
    """An answer in the making. Its reader has `chunks`, or `begin`, `take`, `leave` and `finish`; the rest is
    called by the scheduler.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        cancelled: Callable[[], bool],
        continues: bool,
        constraint: Constraint | None = None,
        visible: Collection[int] = (),
        choice: int = 0,
    ) -> None:
        """visible: control tokens that belong to the text, see `Tokenizer.stream`. choice: which of several
        answers to the same prompt, see `Sampler`.
        """
        super().__init__(session, np.empty(0, np.int32), cancelled)
        self._session, self._prompt, self._settings = session, prompt, settings
        self._sampler = Sampler(settings.sampling, session.executor, choice=choice)
        self._constraint = constraint
        sampling = settings.sampling
        self._plain = constraint is None and not sampling.has_penalties and sampling.logprobs is None
        self._next: NextToken | None = None
        self._context = session.context
        self._one = np.empty(1, np.int32)  # where `todo` is a single token
        self._ends = answer_ends(settings, tokenizer)
        if constraint is not None:
            self._ends = self._ends or tokenizer.eos_ids  # where only its end may follow, it ends
            continues = True  # a space at its beginning is part of the form
        # Forced tokens that a bias may have forbidden are drawn, which says that none is left.
        self._must_draw = {token for token, bias in settings.sampling.logit_bias.items() if bias == -np.inf}
        if not self._must_draw.isdisjoint(self._ends):
            self._must_draw |= tokenizer.eos_ids
        self._tokenizer, self._continues, self._visible = tokenizer, continues, visible
        self._steps: list[tuple[Sampled, str]] = []  # tokens with the text that became certain with them
        self._whole = [constraint is None or constraint.is_complete]  # the texts of so many tokens, from 0 on
        self._decoder, self._matcher = self._text()
        self._unread: deque[Chunk] = deque()
        self._fresh: list[Chunk] = []  # of the present pass
        self._drawn = self._forced = 0  # tokens in it, an end token included
        self._left = ""
        self._reason: StopReason | None = None
        self._stop: str | None = None  # the control token among the stop strings that ended it
        self._shown = False  # whether the reader may know that it has ended
        self._ttft: float | None = None
        self._prefill = 0.0  # seconds
        self._seconds: list[float] = []  # of the steps after the first
        self._waited = 0.0  # seconds of passes that have brought no token yet
        self._reused = self._computed = 0  # tokens of the prompt
        self._computed_before = session.computed_tokens
        self._speculation = session.speculation

    def chunks(self) -> Iterator[Chunk]:
        """All chunks but that of text which is left, see `flush`; passes are run by whoever waits for one."""
        session, scheduler = self._session, self._session.scheduler
        try:
            self.begin()
            while True:
                with session.used():
                    scheduler.collect(self)
                if self._unread and self.cancelled():
                    self.cancel()
                    break
                if not self._unread:
                    break
                yield self._unread.popleft()
            if self.error is not None and not self._unread:
                raise self.error
        except GeneratorExit:
            # Perhaps from the garbage collector, in a thread that holds any lock: nothing may be waited for.
            self.abandoned = True
            self._forget_unread()
            raise
        finally:
            if not self.abandoned:
                self.leave()
        self.finish()

    def begin(self) -> None:
        """Take part in the passes from now on. Raises as `Session.plan` and `Scheduler.submit` do."""
        session = self._session
        reused, self._computed_before = session.reused_tokens, session.computed_tokens
        self.todo = session.plan(self._prompt)
        if self._speculation is not None:
            self._speculation.begin()
        most_tokens = self._settings.max_new_tokens or _EXPECTED_TOKENS
        self.most_rows = min(session.context, len(self._prompt) + most_tokens)
        self._reused = session.reused_tokens - reused
        session.scheduler.submit(self)

    def take(self) -> list[Chunk]:
        """The chunks that are there, for a reader that takes all of them after every pass."""
        taken = list(self._unread)
        self._unread.clear()
        return taken

    @property
    def has_ended(self) -> bool:
        """No chunk is there and none will come: `leave`, and `finish` unless there is an error."""
        return self.is_ready and not self._unread

    def leave(self) -> None:
        """Take no part in passes any more; chunks that nobody has taken are forgotten."""
        self._session.scheduler.withdraw(self)
        if self._forget_unread():
            self._session.truncate(len(self._prompt) + len(self._steps))

    def finish(self) -> None:
        """Let others find what has been computed."""
        with self._session.used():
            self._session.remember()
            if self._speculation is not None:
                self._speculation.end()

    @property
    def is_ready(self) -> bool:
        """A chunk is there, or no more will come."""
        return bool(self._unread) or self._shown or self.error is not None

    @property
    def wants_rows(self) -> bool:
        """Until it ends."""
        going = self._reason is None and self.error is None and not self.abandoned
        return going and len(self._unread) < _MOST_UNREAD

    def cancel(self) -> None:
        """The answer has what it has."""
        self._reason, self._shown = "cancelled", True

    def open(self, rows: int) -> SequenceStep:
        """The next tokens, and the guesses behind them."""
        self._opened = rows
        wanted: Logits = "last" if rows == len(self.todo) else "none"
        if wanted == "none":
            self.tree = NOTHING
        hidden = self._speculation is not None and self._speculation.wants_hidden
        layers = self._speculation.taps if self._speculation is not None and hidden else ()
        return self._session.open_step(
            self.todo[:rows],
            wanted,
            tree=self.tree,
            hidden=hidden and not layers,
            layers=layers,
            held=True,
            soft=None if self._speculation is None else self._speculation.soft,
        )

    def close(self, result: StepResult) -> None:
        """Take what came of the step, as far as the guesses were right."""
        session, tree, decoded = self._session, self.tree, self.decodes
        path: list[int] = []
        self._drawn = self._forced = 0
        if result.error is not None or result.logits is None or not len(tree):
            super().close(result)
        else:
            self.todo = self.todo[self._opened :]
            path = self._verify(tree, result.logits)
            session.close_step(path)
            self._force()
        if result.error is None and self._speculation is not None:
            rows = [*range(self._opened), *(self._opened + node for node in path)]
            hidden = None if result.hidden is None else result.hidden[rows]
            if result.layers:
                hidden = np.concatenate([each[rows] for each in result.layers], axis=1)
            soft = None
            if result.soft is not None:
                last = path[-1] + 1 if path else 0
                soft = result.soft[last * tree.group : (last + 1) * tree.group].copy()
            self._tell(rows, hidden, soft)
            if decoded and self._drawn:
                self._speculation.count(tree, len(path), self._drawn)

    @property
    def is_plain(self) -> bool:
        """While it decodes without anything that changes which tokens may follow, or looks at the logits."""
        return self.decodes and self._plain and len(self.todo) == 1 and not self.tree.group

    def open_next(self) -> NextToken:
        """The next token, and the guesses behind it."""
        session, tree, speculation = self._session, self.tree, self._speculation
        if self._next is None:
            self._next = session.next_token(self._sampler.options)
        step = self._next
        self._opened, token = 1, int(self.todo[0])
        step.put(token, len(self._steps))
        if len(tree):
            if tree.is_chain:
                step.guess(tree.tokens)
            else:
                step.guess(tree.tokens, session.length + tree.positions(), tree.masks())
        if speculation is not None:
            hidden = speculation.wants_hidden
            step.want(hidden, speculation.taps if hidden else ())
            if hidden and len(self._steps) + 1 != self._settings.max_new_tokens:
                speculation.search_behind(step, session.length)
        session.open_next(token, tree)
        return step

    def close_next(self, drawn: Sequence[int] | EdgeError) -> None:
        """Take the tokens that were drawn."""
        self._drawn = self._forced = 0
        if isinstance(drawn, EdgeError):
            self.undo()
            self.error = drawn
            return
        session, step = self._session, self._next
        assert step is not None
        for token in drawn:
            self.todo = _EMPTY
            self._drawn += 1
            if self._take(Sampled(token)) is None:
                break
        right = step.right[: self._drawn - 1]  # before what has ended it
        session.close_next(drawn[: len(right)])
        if self._speculation is not None:
            rows = [0, *right]
            searched = self._speculation.pass_ended(len(rows))
            states = None if searched else step.states
            self._tell(rows, None if states is None else states[rows], searched=searched)
            self._speculation.count(self.tree, len(right), self._drawn)

    def _tell(
        self,
        rows: Sequence[int],
        hidden: FloatArray | None,
        soft: FloatArray | None = None,
        searched: bool = False,
    ) -> None:
        """What guesses learns which rows of the pass have stayed."""
        assert self._speculation is not None
        start = self._session.length - len(rows)
        tokens = self._session.tokens[start:].copy()
        self._speculation.accepted(Accepted(start, tokens, hidden, soft, searched))

    def take_logits(self, logits: FloatArray) -> None:
        """Choose the next token."""
        if not self.decodes:
            self._session.remember(goes_on=True)  # the prompt: others may begin like it
        self._draw(logits)
        self._force()

    @property
    def speculates(self) -> bool:
        """While it decodes, if its session does."""
        return self._speculation is not None and self.decodes

    def wants_to_guess(self) -> bool:
        """Unless that has not paid lately."""
        return self._speculation is not None and self._speculation.is_awake()

    def propose(self, budget: Budget) -> DraftTree:
        """Guesses that the answer and the context have room for."""
        assert self._speculation is not None
        session, most = self._session, self._settings.max_new_tokens
        room = session.context - session.length - len(self.todo)
        left = room if most is None else most - len(self._steps) - 1
        if room < 1 or left < 1:
            return NOTHING
        rows = min(budget.rows - len(self.todo) + 1, room)  # all tokens of a step with a tree are part of it
        if rows < 1:
            return NOTHING
        tokens = np.concatenate([session.tokens, self.todo])
        tree = self._speculation.propose(
            tokens, budget._replace(rows=rows, depth=min(budget.depth, rows, left, room))
        )
        return tree if self._constraint is None else tree.fitting(self._constraint.fits)

    @property
    def search_seconds(self) -> float:
        """See `Job`."""
        return 0.0 if self._speculation is None else self._speculation.search_seconds

    def take_search(self) -> DraftAhead | None:
        """See `SequenceSpeculation.take_search`."""
        return None if self._speculation is None else self._speculation.take_search()

    def charge(self, seconds: float) -> None:
        """See `SequenceSpeculation.charge`."""
        assert self._speculation is not None
        self._speculation.charge(seconds)

    def settle(self, cost: PassCost) -> None:
        """See `SequenceSpeculation.settle`."""
        if self._speculation is not None and self._drawn:
            self._speculation.settle(self._drawn, cost)

    def publish(self, seconds: float, now: float) -> None:
        """Show the chunks of this pass, and that they were the last ones."""
        brought = self._drawn + self._forced
        if self._ttft is not None:
            self._waited += seconds
            if brought:
                self._seconds += [self._waited / brought] * brought
                self._waited = 0.0
        else:
            self._prefill += seconds
            self._computed = self._session.computed_tokens - self._computed_before
            if self.decodes:
                self._ttft = now - self.submitted
                self._seconds += [0.0] * (brought - 1)
        self._unread.extend(self._fresh)
        self._fresh = []
        self._shown = self._reason is not None

    def _verify(self, tree: DraftTree, logits: FloatArray) -> list[int]:
        """Draw the target's own token at the root and at each guess that bears it; returns those guesses.

        Match sampling: what is drawn is what plain decoding would draw, whatever was guessed.
        """
        path: list[int] = []
        while True:
            row = self._opened + path[-1] if path else self._opened - 1
            drawn = self._draw(logits[row], tree, path)
            children = [] if drawn is None else tree.children(path[-1] if path else -1)
            match = [child for child in children if tree.tokens[child] == drawn]
            if not match:
                return path
            path.append(match[0])

    def _draw(self, logits: FloatArray, tree: DraftTree = NOTHING, path: Sequence[int] = ()) -> int | None:
        """Choose the token after the cache's, or after a path of the tree at its end; None if the answer
        ends.
        """
        settings, history = self._settings.sampling, _EMPTY
        if settings.has_penalties:
            # A repetition penalty counts the prompt too, see SamplingParams.
            counted_from = 0 if settings.repetition_penalty != 1 else len(self._prompt)
            before = self._session.tokens[counted_from : self._session.length - len(tree)]
            history = np.concatenate([before, np.array([tree.tokens[node] for node in path], np.int32)])
        self.todo = _EMPTY
        self._drawn += 1
        return self._take(
            self._sampler.sample(logits, history, index=len(self._steps), allowed=self._allowed())
        )

    def _take(self, choice: Sampled) -> int | None:
        """The next token; None if the answer ends."""
        token, constraint = choice.token, self._constraint
        own = constraint is not None and token in self._tokenizer.eos_ids  # what a form ends with
        if constraint is not None and (own or token not in self._ends):
            constraint.advance(token)
        if own or token in self._ends:
            self._reason, named = "eos", self._tokenizer.special_tokens
            self._stop = next((text for text in self._settings.stop if named.get(text) == token), None)
            return None
        text = self._matcher.push(self._decoder.push(token))
        self._steps.append((choice, text))
        self._whole.append(constraint is None or constraint.is_complete)
        self._fresh.append(Chunk(text, token, choice.logprob, choice.top))
        if len(self.todo):
            self.todo = np.array([*self.todo.tolist(), token], np.int32)
        else:
            self._one[0] = token
            self.todo = self._one
        if self._matcher.stopped:
            self._reason = "stop"
        elif len(self._steps) == self._settings.max_new_tokens:
            self._reason = "length"
        elif len(self._prompt) + len(self._steps) > self._context:
            self._reason = "context"
        return token if self._reason is None else None

    def _force(self) -> None:
        """Take the tokens that must come: they need no pass before the next token that is drawn.

        With log-probabilities asked for each is drawn, which gives the same tokens and errors.
        """
        if self._constraint is None or self._settings.sampling.logprobs is not None:
            return
        while self._reason is None and (tokens := self._constraint.forced()):
            for token in tokens:
                if token in self._must_draw:
                    return
                self._forced += 1
                if self._take(Sampled(token)) is None:
                    break

    def _allowed(self) -> npt.NDArray[np.uint32] | None:
        """The constraint's mask, for the end tokens of this answer."""
        if self._constraint is None or (mask := self._constraint.allowed()) is None:
            return None
        own = self._tokenizer.eos_ids
        if self._ends != own:
            ends = self._ends if self._constraint.is_complete else frozenset[int]()
            for token in own | self._ends:
                bit = np.uint32(1 << token % 32)
                mask[token // 32] = mask[token // 32] | bit if token in ends else mask[token // 32] & ~bit
        return mask

    def flush(self) -> str:
        """The text that was held back."""
        self._left += self._matcher.push(self._decoder.flush()) + self._matcher.flush()
        return self._left

    def completion(self) -> Completion:
        """What there is of the answer."""
        steps = len(self._steps) - (self._reason != "eos")  # the end token took a step as well
        decoding = sum(self._seconds)
        sampled = tuple(choice for choice, _ in self._steps)
        return Completion(
            text="".join(text for _, text in self._steps) + self._left,
            tokens=tuple(choice.token for choice in sampled),
            prompt_tokens=len(self._prompt),
            reused_tokens=self._reused,
            ttft_seconds=self._ttft,
            prefill_tokens_per_second=self._computed / self._prefill if self._prefill > 0 else 0.0,
            tokens_per_second=steps / decoding if steps > 0 and decoding > 0 else 0.0,
            stop_reason=self._reason or "cancelled",
            seed=self._sampler.seed,
            logprobs=sampled if self._settings.sampling.logprobs is not None else None,
            speculation=None if self._speculation is None else self._speculation.statistics,
            is_complete=self._constraint is None or (self._whole[-1] and self._reason != "stop"),
            stop_string=self._matcher.found or self._stop,
        )

    def _text(self) -> tuple[StreamDecoder, StopMatcher]:
        decoder = self._tokenizer.stream(continues=self._continues, visible=self._visible)
        return decoder, StopMatcher(self._settings.stop)

    def _forget_unread(self) -> bool:
        """End the answer with what its reader has taken; whether that is not all."""
        if not self._unread:
            return False
        read = [choice for choice, _ in self._steps[: len(self._steps) - len(self._unread)]]
        self._unread.clear()
        self._whole = self._whole[: len(read) + 1]
        self._seconds = self._seconds[: max(0, len(read) - 1)]
        self._reason, self._stop = "cancelled", None
        self._decoder, self._matcher = self._text()
        self._steps = [(choice, self._matcher.push(self._decoder.push(choice.token))) for choice in read]
        return True
