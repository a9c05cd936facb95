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
from typing import Any, Protocol

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
from edge.train.drafts.options import AnswerOptions, state_layers

_AHEAD = 4  # shards whose prompts may be answered while the first of them still waits for its last answer


@dataclass(frozen=True, eq=False)
class Recorded:
    """An answer. tokens: int32 [n], of prompt and answer. begin: first place of the answer. states: float16
    [n, width], the hidden states; of the last token, which was never run, zeros.
    """

    tokens: npt.NDArray[np.int32]
    begin: int
    states: npt.NDArray[np.float16]


class Recorder(Drafter):
    """Guesses nothing and keeps the hidden states that drafters are told."""

    wants_hidden = needs_all_hidden = True

    def __init__(self, taps: tuple[int, ...], width: int) -> None:
        """taps: see `Drafter`. width: numbers of a token's states."""
        self.taps = taps
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
        with np.errstate(over="ignore"):  # what is beyond float16 is refused where it is written
            self.states[accepted.start : end] = accepted.hidden


class Respondent:
    """Answers with a model, several at a time, and records what it computed."""

    def __init__(self, model: Model, options: AnswerOptions) -> None:
        """model: opened with speculate="off" and prefix_memory=0."""
        self._model, self._options = model, options
        self.layers = state_layers(options.kind, model.config)
        self.width = max(1, len(self.layers)) * model.config.hidden_size
        made: list[Recorder] = []

        def new_recorder() -> Recorder:
            made.append(Recorder(self.layers, self.width))
            return made[-1]

        model.scheduler.speculation = Speculation("recorder", lambda: new_recorder)
        self._free: SimpleQueue[tuple[Session, Recorder]] = SimpleQueue()
        for _ in range(options.answers_at_once):  # a session makes its own
            self._free.put((model.session(), made[-1]))

    def answer(self, prompt: str, number: int) -> Recorded | None:
        """The answer to the prompt of this number; None for one that is too long or of no use."""
        options, tokens = self._options, self._encode(prompt)
        if not 1 < len(tokens) <= min(options.prompt_tokens, self._model.context - options.answer_tokens):
            return None
        sampled = {
            "temperature": options.sampled_at if number % 2 else 0.0,
            "seed": options.first_seed + number,
        }
        said, states = self._run(tokens, options.answer_tokens, **sampled)
        said = said[: loop_start(said)]
        if len(said) < 2:
            return None
        whole = np.array([*tokens, *said], np.int32)
        return Recorded(whole, len(tokens), _but_last(states, len(whole)))

    def read(self, tokens: npt.NDArray[np.integer[Any]], begin: int) -> Recorded:
        """An answer that exists already."""
        _, states = self._run(tokens[:-1].tolist(), 1, temperature=0.0)
        return Recorded(tokens.astype(np.int32), begin, _but_last(states, len(tokens)))

    def _run(
        self, prompt: list[int], most: int, **sampled: Any
    ) -> tuple[Sequence[int], npt.NDArray[np.float16]]:
        """What the model says, and the states of prompt and answer."""
        session, recorder = self._free.get()
        try:
            done = self._model.complete(
                prompt, session=session, max_new_tokens=most, repetition_penalty=1.0, **sampled
            )
            assert session.speculation is not None
            session.speculation.end()
            return done.tokens, recorder.states[: len(prompt) + len(done.tokens)]
        finally:
            self._free.put((session, recorder))

    def _encode(self, prompt: str) -> list[int]:
        """Through the chat template; a model without one goes on with the text."""
        if self._model.files.chat_template is None:
            return self._model.tokenizer.encode(prompt)
        return list(self._model.prepare(Request((Message("user", prompt),))).prompt)


def _but_last(states: npt.NDArray[np.float16], count: int) -> npt.NDArray[np.float16]:
    """States of so many tokens, of the last one zeros."""
    found = np.zeros((count, states.shape[1]), np.float16)
    found[:-1] = states[: count - 1]
    return found


class Asked(Protocol):
    """What is recorded, one after another."""

    def __len__(self) -> int:
        """How many there are."""

    def identity(self, start: int, stop: int) -> str:
        """What tells some of them from others."""

    def record(self, respondent: Respondent, number: int) -> Recorded | None:
        """One of them; None if it is of no use."""


@dataclass(frozen=True)
class Prompts(Asked):
    """Questions and tasks."""

    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def identity(self, start: int, stop: int) -> str:
        """See `Asked`."""
        return json_digest(list(self.texts[start:stop]))

    def record(self, respondent: Respondent, number: int) -> Recorded | None:
        """See `Asked`."""
        return respondent.answer(self.texts[number], number)


@dataclass(frozen=True)
class Earlier(Asked):
    """Answers that exist: they are read again, for other states or by another form of the model. first: how
    many of them, if not all.
    """

    folder: ShardFolder
    first: int | None = None

    def __len__(self) -> int:
        every = self.folder.documents
        return every if self.first is None else min(self.first, every)

    def identity(self, start: int, stop: int) -> str:
        """See `Asked`."""
        return json_digest([len(self), start, stop, *(each.tokens_sha256 for each in self.folder.shards)])

    def record(self, respondent: Respondent, number: int) -> Recorded:
        """See `Asked`."""
        return respondent.read(self.folder.document(number), int(self.folder.begins[number]))


def make_answers(
    model: Model,
    asked: Asked,
    out: Path,
    options: AnswerOptions,
    progress: Callable[[int, int], None] = lambda asked, tokens: None,
) -> ShardFolder:
    """Record everything that is asked into a folder of shards, or go on with it. progress: gets how many are
    done, and their tokens.

    model: see `Respondent`. DataError if the folder has shards of other prompts, options or another model.
    """
    files = model.files
    if not isinstance(files, Bundle):
        raise EdgeError(f"'{model.name}' was exported; no draft can guess for it: name the model itself.")
    respondent = Respondent(model, options)
    facts = ShardFacts(
        model.config.vocab_size,
        model.config.bos_token_id,
        tuple(model.tokenizer.end_tokens),
        tokenizer_digest(files.tokenizer_files),
        respondent.width,
        respondent.layers,
    )
    if isinstance(asked, Earlier) and asked.folder.facts.tokenizer != facts.tokenizer:
        raise DataError(f"'{asked.folder.path}' has answers with another tokenizer than the model's.")
    settings = {name: value for name, value in asdict(options).items() if name != "answers_at_once"}
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
    for shard, size in _shards(respondent, asked, making, options):
        shards.append(shard)
        done, tokens = done + size, tokens + shard.tokens
        progress(done, tokens)
    write_index(out, facts, shards, files.tokenizer_files)
    return ShardFolder.open(out)


def _shards(
    respondent: Respondent, asked: Asked, making: _Making, options: AnswerOptions
) -> Iterator[tuple[Shard, int]]:
    """Shards in their order, and how many of those asked each is of."""
    waiting: deque[tuple[str, str, int, Shard | list[Future[Recorded | None]]]] = deque()
    with ThreadPoolExecutor(options.answers_at_once) as pool:
        try:
            for at, start in enumerate(range(0, len(asked), options.shard_prompts)):
                numbers = range(start, min(start + options.shard_prompts, len(asked)))
                name, digest = shard_name(at), making.digest(asked.identity(start, numbers.stop))
                found: Shard | list[Future[Recorded | None]] = making.kept(name, digest) or [
                    pool.submit(asked.record, respondent, number) for number in numbers
                ]
                waiting.append((name, digest, len(numbers), found))
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

    def digest(self, identity: str) -> str:
        """What a shard remembers of what it is made of."""
        return json_digest({"basis": self.basis, "asked": identity})

    def kept(self, name: str, digest: str) -> Shard | None:
        """A shard that a former run finished."""
        shard = read_shard(self.out, name)
        if shard is not None and shard.text != digest:
            raise DataError(
                f"'{self.out}' has answers to other prompts, of another model or with other options; give "
                "those again, or another --out."
            )
        return shard

    def made(
        self, name: str, digest: str, size: int, found: Shard | list[Future[Recorded | None]]
    ) -> tuple[Shard, int]:
        """The shard, and of how many it is."""
        if not isinstance(found, Shard):
            answers = [each for future in found if (each := future.result()) is not None]
            documents = [each.tokens for each in answers]
            states = States([each.begin for each in answers], [each.states for each in answers])
            found = write_shard(self.out, name, digest, documents, self.facts, states)
        return found, size
