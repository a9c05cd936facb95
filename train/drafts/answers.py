"""What a draft learns from: a model's own answers, with its hidden states (EAGLE, arXiv 2401.15077).

Answers come from the batched engine, many at a time. The states are those that the engine computed on the
way, so a draft sees in training what it will see when it guesses, quantization and all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from edge.engine.request import Request
from edge.engine.session import Session
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import EdgeError
from edge.formats.atomic import write_failure
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.manifest import TargetIdentity
from edge.formats.hashing import json_digest
from edge.runtime import Model
from edge.text.messages import Message
from edge.train.data.errors import DataError
from edge.train.data.shards import (
    Shard,
    ShardFacts,
    ShardFolder,
    States,
    read_shard,
    shard_name,
    tokenizer_digest,
    write_index,
    write_shard,
)
from edge.train.drafts.loops import loop_start
from edge.train.drafts.options import AnswerOptions

_AHEAD = 4  # shards whose prompts may be answered while the first of them still waits for its last answer


@dataclass(frozen=True, eq=False)
class Recorded:
    """An answer. tokens: int32 [n], of prompt and answer. begin: first place of the answer. features: float16
    [n, hidden_size], the hidden states after the final norm; of the last token, which was never run, zeros.
    """

    tokens: npt.NDArray[np.int32]
    begin: int
    features: npt.NDArray[np.float16]


class Recorder(Drafter):
    """Guesses nothing and keeps the hidden states that drafters are told."""

    wants_hidden = True

    def __init__(self, width: int) -> None:
        self.states = np.zeros((0, width), np.float16)

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """Nothing."""
        return NOTHING

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`."""
        if accepted.hidden is None:
            raise EdgeError("Tokens of a prefix have no hidden states; open the model with prefix_memory=0.")
        end = accepted.start + len(accepted.tokens)
        if end > len(self.states):
            more = np.zeros((max(256, end - len(self.states)), self.states.shape[1]), np.float16)
            self.states = np.concatenate([self.states, more])
        self.states[accepted.start : end] = accepted.hidden


class Respondent:
    """Answers prompts with a model, several at a time, and records them."""

    def __init__(self, model: Model, options: AnswerOptions) -> None:
        """model: opened with speculate="off" and prefix_memory=0."""
        self._model, self._options = model, options
        made: list[Recorder] = []

        def new_recorder() -> Recorder:
            made.append(Recorder(model.config.hidden_size))
            return made[-1]

        model.scheduler.speculation = Speculation("recorder", lambda: new_recorder)
        self._free: SimpleQueue[tuple[Session, Recorder]] = SimpleQueue()
        for _ in range(options.streams):  # a session makes its own
            self._free.put((model.session(), made[-1]))

    def answer(self, prompt: str, number: int) -> Recorded | None:
        """The answer to the prompt of this number; None for one that is too long or of no use."""
        model, options = self._model, self._options
        tokens = self.encode(prompt)
        if not 1 < len(tokens) <= min(options.prompt_tokens, model.context - options.tokens):
            return None
        session, recorder = self._free.get()
        try:
            done = model.complete(
                tokens,
                session=session,
                temperature=options.temperature if number % 2 else 0.0,
                seed=options.seed + number,
                max_new_tokens=options.tokens,
                repetition_penalty=1.0,
            )
            answered = np.array([*tokens, *done.tokens], np.int32)
            answered = answered[: len(tokens) + loop_start(done.tokens)]
            assert session.speculation is not None
            session.speculation.end()
            states = recorder.states[: len(answered)].copy()
        finally:
            self._free.put((session, recorder))
        if len(answered) - len(tokens) < 2:
            return None
        states[-1] = 0
        return Recorded(answered, len(tokens), states)

    def encode(self, prompt: str) -> list[int]:
        """Through the chat template; a model without one goes on with the text."""
        if self._model.files.chat_template is None:
            return self._model.tokenizer.encode(prompt)
        return list(self._model.prepare(Request((Message("user", prompt),))).prompt)


def make_answers(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    options: AnswerOptions,
    progress: Callable[[int, int], None] = lambda prompts, tokens: None,
) -> ShardFolder:
    """Answer all prompts into a folder of shards, or go on with it. progress: gets prompts and tokens done.

    model: see `Respondent`. DataError if the folder has shards of other prompts, options or another model.
    """
    files = model.files
    if not isinstance(files, Bundle):
        raise EdgeError(f"'{model.name}' was exported; no draft can guess for it: name the model itself.")
    facts = ShardFacts(
        model.config.vocab_size,
        model.config.bos_token_id,
        tuple(model.tokenizer.end_tokens),
        tokenizer_digest(files.tokenizer_files),
        model.config.hidden_size,
    )
    settings = {name: value for name, value in asdict(options).items() if name != "streams"}
    info = model.executor.info
    run = {
        "weights": TargetIdentity.of(files).weights,
        "kv": info.kv_type,
        "activations": info.activations,
    }
    making = _Making(out, facts, json_digest({**run, **settings}))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(write_failure(out, error)) from None
    shards: list[Shard] = []
    done = tokens = 0
    for shard, size in _shards(Respondent(model, options), prompts, making, options):
        shards.append(shard)
        done, tokens = done + size, tokens + shard.tokens
        progress(done, tokens)
    write_index(out, facts, shards, files.tokenizer_files)
    return ShardFolder.open(out)


def _shards(
    respondent: Respondent, prompts: Sequence[str], making: _Making, options: AnswerOptions
) -> Iterator[tuple[Shard, int]]:
    """Shards in their order, and how many prompts each is of."""
    waiting: deque[tuple[int, list[str], Shard | list[Future[Recorded | None]]]] = deque()
    with ThreadPoolExecutor(options.streams) as pool:
        try:
            for number, start in enumerate(range(0, len(prompts), options.shard)):
                part = list(prompts[start : start + options.shard])
                waiting.append(
                    (
                        number,
                        part,
                        making.kept(number, part)
                        or [
                            pool.submit(respondent.answer, prompt, start + at)
                            for at, prompt in enumerate(part)
                        ],
                    )
                )
                if len(waiting) == _AHEAD:
                    yield making.made(*waiting.popleft())
            while waiting:
                yield making.made(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Making:
    """A folder in the making. basis: digest of what all answers depend on."""

    out: Path
    facts: ShardFacts
    basis: str

    def kept(self, number: int, prompts: Sequence[str]) -> Shard | None:
        """A shard that a former run finished."""
        shard = read_shard(self.out, shard_name(number))
        if shard is not None and shard.text != self._digest(prompts):
            raise DataError(
                f"'{self.out}' has answers to other prompts, of another model or with other options; give "
                "those again, or another --out."
            )
        return shard

    def made(
        self, number: int, prompts: Sequence[str], found: Shard | list[Future[Recorded | None]]
    ) -> tuple[Shard, int]:
        """The shard, and of how many prompts it is."""
        if not isinstance(found, Shard):
            answers = [each for future in found if (each := future.result()) is not None]
            documents = [each.tokens for each in answers]
            states = States([each.begin for each in answers], [each.features for each in answers])
            name = shard_name(number)
            found = write_shard(self.out, name, self._digest(prompts), documents, self.facts, states)
        return found, len(prompts)

    def _digest(self, prompts: Sequence[str]) -> str:
        return json_digest({"basis": self.basis, "prompts": list(prompts)})
