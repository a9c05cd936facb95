"""Threads that join, read, cancel and drop answers of one model at random, while it looks up how they may go
on: each gets what it would get alone.

`scripts/sanitize` runs this on libraries built with sanitizers, for EDGE_STRESS_SECONDS there.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.engine.prefix_cache import PrefixCache
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from tests.planted import FreeRows

SECONDS = float(os.environ.get("EDGE_STRESS_SECONDS", "5"))
THREADS = 6
LEAST = 12  # answers of each thread, however slow the machine
SPARSE = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0, "max_new_tokens": 40},
    {"temperature": 1.2, "seed": 5, "max_new_tokens": 25},
    {"temperature": 0.8, "seed": 6, "repetition_penalty": 1.2, "max_new_tokens": 60},
    {"temperature": 0, "max_new_tokens": 1},
]


def prompts() -> list[list[int]]:
    """Of all lengths; most begin like others."""
    numbers = np.random.default_rng(0)
    stem = numbers.integers(3, 110, 700).tolist()
    own = [numbers.integers(3, 110, length).tolist() for length in (1, 30, 64, 200)]
    return [*own, *(stem[:cut] + numbers.integers(3, 110, rest).tolist() for cut, rest in PARTS)]


PARTS = ((64, 3), (130, 40), (255, 2), (256, 1), (257, 30), (500, 60), (690, 5))


class Reader(threading.Thread):
    """Uses the model at random until the time is over; `fault` is what went wrong."""

    def __init__(self, model: Model, alone: dict[tuple[int, int], tuple[int, ...]], seed: int) -> None:
        super().__init__(daemon=True)
        self._model, self._alone, self._random = model, alone, random.Random(seed)
        self._prompts = prompts()
        self.fault: BaseException | None = None
        self.answers = self.guessed = 0

    def run(self) -> None:
        end = time.monotonic() + SECONDS
        session = self._model.session()
        try:
            while time.monotonic() < end or (self.answers < LEAST and time.monotonic() < end + 100):
                if self._random.random() < 0.2:
                    session = self._model.session()
                self._one(session)
                self.answers += 1
        except BaseException as error:
            self.fault = error

    def _one(self, session: Any) -> None:
        choice, setting = self._random.randrange(len(self._prompts)), self._random.randrange(len(SETTINGS))
        wanted = self._alone[choice, setting]
        named = {**SETTINGS[setting], "ignore_eos": True}
        if self._random.random() < 0.5:
            named["session"] = session
        stream = self._model.stream(self._prompts[choice], **named)
        how = self._random.choice(["whole", "whole", "close", "cancel", "drop"])
        if how == "whole":
            found = [chunk.token for chunk in stream if chunk.token is not None]
            assert tuple(found) == stream.result.tokens == wanted
            guesses = stream.result.speculation
            self.guessed += 0 if guesses is None else guesses.accepted
            return
        reads = self._random.randrange(6)
        found = []
        if how == "cancel":
            threading.Timer(self._random.random() / 50, stream.cancel).start()
        for chunk in stream:
            found += [] if chunk.token is None else [chunk.token]
            if how != "cancel" and len(found) >= reads:
                break
        if how == "drop":
            del stream
            if self._random.random() < 0.05:
                gc.collect()
        else:
            stream.close()
            assert stream.result.tokens == tuple(found)
        assert tuple(found) == wanted[: len(found)]


@pytest.mark.parametrize(("kv_type", "attention"), [("int16", "dense"), ("int8", "sparse")])
def test_every_answer_is_that_of_its_request_alone(
    make_bundle, tiny_config, tmp_path: Path, kv_type: str, attention: str
):
    config = replace(
        tiny_config,
        vocab_size=120,
        max_position_embeddings=1024,
        sparse=SPARSE if attention == "sparse" else None,
    )
    bundle = make_bundle(config, QuantScheme("int4", 32), tokenizer=True)
    executor = open_executor(bundle, RunOptions(threads=2, kv_type=kv_type, max_batch=64))
    with Model(bundle, executor, name="tiny") as model:
        alone = {
            (choice, setting): model.complete(prompt, ignore_eos=True, **some).tokens
            for choice, prompt in enumerate(prompts())
            for setting, some in enumerate(SETTINGS)
        }
        session = model.session()
        session.prefill(prompts()[-1])
        room = 4 * executor.cache_bytes  # some fit, others leave memory, for files if they are long
        del session
        prefixes = PrefixCache(executor, room, tmp_path)
        shared = Model(bundle, executor, prefixes=prefixes, speculate="lookup")
        shared.scheduler.costs = FreeRows()  # of a network so small none would pay
        readers = [Reader(shared, alone, seed) for seed in range(THREADS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(SECONDS + 120)
        assert not any(reader.is_alive() for reader in readers)
        for reader in readers:
            if reader.fault is not None:
                raise reader.fault
        assert (
            all(reader.answers >= LEAST for reader in readers)
            and sum(reader.guessed for reader in readers) > 9
        )
        assert shared.scheduler.prefixes is not None and shared.scheduler.prefixes.statistics.hits > 0
        shared.scheduler.prefixes.forget()
        del shared, readers, reader
        gc.collect()
        assert executor.cache_bytes == 0
