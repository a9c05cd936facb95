"""The driver: answers made together are those of each alone; queues, cancels, errors and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.engine.answer import Answer
from edge.engine.completion import Chunk, Completion
from edge.engine.driver import BusyError, ClosedError, Driver, DriverLoad, Handle, NeverBegunError, Work
from edge.engine.prefix_cache import PrefixCache
from edge.engine.settings import merge_settings
from edge.errors import ContextError, EdgeError, TokenizerError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.kv_file import reading_cache
from edge.runtime import Model
from tests.held import Held
from tests.passes import watch

BATCH = 16
CONTEXT = 1024


@pytest.fixture
def model(make_bundle, tiny_config) -> Iterator[Model]:
    config = replace(tiny_config, vocab_size=120, max_position_embeddings=CONTEXT)
    bundle = make_bundle(config, tokenizer=True)
    executor = open_executor(bundle, RunOptions(context=CONTEXT, threads=1, max_batch=BATCH))
    prefixes = PrefixCache(executor, 1 << 30)
    with Model(bundle, executor, name="tiny", prefixes=prefixes) as opened:
        yield opened


@pytest.fixture
def passes(model, monkeypatch) -> list[list[int]]:
    """The numbers of tokens of each pass's steps."""
    seen: list[list[int]] = []

    def recorded(sizes: list[int], run: Callable[[], Any]) -> Any:
        seen.append(sizes)
        return run()

    watch(monkeypatch, model.executor, recorded)
    return seen


@pytest.fixture
def drive(model) -> Iterator[Callable[..., Driver]]:
    """`drive(parallel=..., queue=...)`: a driver, which is closed after the test."""
    made: list[Driver] = []

    def make(**options: Any) -> Driver:
        made.append(Driver(model.session, model.tokenizer, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Reader:
    """Takes what comes of one request."""

    def __init__(self, count: int = 1) -> None:
        self.chunks: list[list[Chunk]] = [[] for _ in range(count)]
        self.outcomes: dict[int, Completion | Exception] = {}
        self.threads: set[int] = set()
        self.first = threading.Event()
        self.over = threading.Event()
        self.handle: Handle | None = None

    def on_chunks(self, index: int, chunks: list[Chunk]) -> None:
        self.chunks[index] += chunks
        self.threads.add(threading.get_ident())
        self.first.set()

    def on_done(self, index: int, outcome: Completion | Exception) -> None:
        assert index not in self.outcomes
        self.outcomes[index] = outcome
        if len(self.outcomes) == len(self.chunks):
            self.over.set()

    def wait(self) -> list[Any]:
        assert self.over.wait(60)
        return [self.outcomes[index] for index in range(len(self.chunks))]


def prompt_of(n: int, length: int = 20) -> list[int]:
    return np.random.default_rng(n).integers(3, 110, length).tolist()


def settings_of(**given: Any) -> dict[str, Any]:
    return {"seed": 3, "temperature": 1.0, "max_new_tokens": 30, "ignore_eos": True, "logprobs": 2, **given}


def work(prompt: Sequence[int], choice: int = 0, **given: Any) -> Work:
    return Work(prompt, merge_settings(request=settings_of(**given)), choice=choice, continues=True)


def ask(driver: Driver, *works: Work) -> Reader:
    reader = Reader(len(works))
    reader.handle = driver.submit(works, reader.on_chunks, reader.on_done)
    return reader


def facts(done: Completion) -> tuple[Any, ...]:
    return done.text, done.tokens, done.logprobs, done.stop_reason


def test_answers_made_together_are_those_of_each_alone(model, drive, passes):
    prompts = [prompt_of(n, 20 + 30 * n) for n in range(4)]
    alone = [model.complete(prompt, **settings_of(seed=n)) for n, prompt in enumerate(prompts)]
    assert model.scheduler.prefixes is not None
    model.scheduler.prefixes.forget()
    passes.clear()
    driver = drive(parallel=4)
    readers = [ask(driver, work(prompt, seed=n)) for n, prompt in enumerate(prompts)]
    found = [reader.wait()[0] for reader in readers]
    assert [facts(done) for done in found] == [facts(done) for done in alone]
    assert max(len(steps) for steps in passes) == 4
    for reader, done in zip(readers, found, strict=True):
        assert "".join(chunk.text for chunk in reader.chunks[0]) == done.text
        assert [chunk.token for chunk in reader.chunks[0] if chunk.token is not None] == list(done.tokens)


def test_no_more_answers_than_may_run_and_the_others_in_order(drive, passes):
    driver = drive(parallel=2, queue=8)
    order: list[int] = []
    readers = []
    for n in range(5):
        reader = Reader()
        done = reader.on_done
        reader.on_done = lambda index, out, n=n, done=done: (order.append(n), done(index, out))[1]  # type: ignore[method-assign]
        driver.submit([work(prompt_of(n))], reader.on_chunks, reader.on_done)
        readers.append(reader)
    for reader in readers:
        reader.wait()
    assert sorted(order[:2]) == [0, 1] and sorted(order[2:4]) == [2, 3] and order[4] == 4
    assert max(len(steps) for steps in passes) == 2


def test_a_request_of_many_answers_takes_turns_with_others(drive):
    driver = drive(parallel=2)
    order: list[str] = []
    readers = []
    for name, count in (("many", 12), ("one", 1)):
        reader = Reader(count)
        done = reader.on_done
        reader.on_done = lambda index, out, name=name, done=done: (order.append(name), done(index, out))[1]  # type: ignore[method-assign]
        works = [work(prompt_of(n), max_new_tokens=60) for n in range(count)]
        driver.submit(works, reader.on_chunks, reader.on_done)
        readers.append(reader)
    for reader in readers:
        reader.wait()
    assert "one" in order[:-2]


def test_one_hand_over_for_all_that_a_pass_brings(drive, passes):
    handed: list[int] = []

    def hand_over(calls: list[Callable[[], Any]]) -> None:
        handed.append(len(calls))
        for call in calls:
            call()

    driver = drive(parallel=4, hand_over=hand_over)
    reader = ask(driver, *(work(prompt_of(n), seed=n) for n in range(4)))
    reader.wait()
    assert len(handed) <= len(passes) and max(handed) >= 4


def test_choices_share_the_prompt(model, drive, passes):
    prompt = prompt_of(1, 200)
    driver = drive(parallel=4)
    reader = ask(driver, *(work(prompt, choice) for choice in range(3)))
    found = reader.wait()
    assert [done.reused_tokens for done in found] == [0, 199, 199]
    assert len({done.tokens for done in found}) == 3
    assert sum(map(sum, passes)) < 200 + 3 * 31 + BATCH
    assert facts(found[0]) == facts(model.complete(prompt, **settings_of()))


def test_a_cancel_ends_before_the_next_pass(drive, passes):
    driver = drive()
    reader = Reader()
    at: list[int] = []

    def on_chunks(index: int, chunks: list[Chunk]) -> None:
        reader.on_chunks(index, chunks)
        if len(reader.chunks[0]) == 5:
            assert reader.handle is not None
            reader.handle.cancel()
            at.append(len(passes))

    first = ask(driver, work(prompt_of(9)))  # so that the handle is there before its chunks are
    reader.handle = driver.submit([work(prompt_of(1), max_new_tokens=500)], on_chunks, reader.on_done)
    (done,) = reader.wait()
    first.wait()
    assert done.stop_reason == "cancelled" and len(done.tokens) == 5
    assert all(len(steps) == 1 for steps in passes[at[0] :])


def test_a_long_prompt_holds_nobody_back(model, drive, passes):
    driver = drive()
    talking = ask(driver, work(prompt_of(1), max_new_tokens=400))
    assert talking.first.wait(60)
    long = ask(driver, work(prompt_of(2, 600), max_new_tokens=1))
    long.wait()
    talking.handle.cancel()  # type: ignore[union-attr]
    talking.wait()
    prefill = [steps for steps in passes if len(steps) == 2]
    assert len(prefill) >= 600 // BATCH
    assert all(1 in steps for steps in prefill)  # a row of each pass is that of who talks


def test_too_many_requests(drive):
    driver = drive(parallel=1, queue=1)
    gate = threading.Event()

    def wait(index: int, chunks: list[Chunk]) -> None:
        gate.wait(60)

    blocked = Reader()
    begun = threading.Event()

    def on_chunks(index: int, chunks: list[Chunk]) -> None:
        begun.set()
        wait(index, chunks)

    driver.submit([work(prompt_of(1))], on_chunks, blocked.on_done)
    assert begun.wait(60)
    waiting = ask(driver, work(prompt_of(2)))
    with pytest.raises(BusyError, match="1 requests wait"):
        ask(driver, work(prompt_of(3)))
    assert (driver.load.running, driver.load.waiting) == (1, 1)
    waiting.handle.cancel()  # type: ignore[union-attr]
    gate.set()
    assert isinstance(waiting.wait()[0], NeverBegunError)
    assert blocked.wait()[0].stop_reason == "length"


def test_a_prompt_that_does_not_fit_is_refused_at_once(drive):
    driver = drive()
    with pytest.raises(ContextError, match="1025 tokens"):
        ask(driver, work(prompt_of(1, CONTEXT + 1)))
    with pytest.raises(EdgeError, match="empty"):
        ask(driver, work([]))


def test_settings_for_another_vocabulary_are_refused_at_once(model, drive, passes):
    driver = drive()
    for wrong in ({"logit_bias": {119: 1.0, 120: 1.0}}, {"eos_token_id": 120, "ignore_eos": False}):
        with pytest.raises(TokenizerError, match="120"):
            ask(driver, work(prompt_of(1)), work(prompt_of(2), **wrong))
    with pytest.raises(TokenizerError, match="logit_bias has the token id 120, which is outside"):
        model.stream(prompt_of(1), logit_bias={120: 1.0})
    assert driver.load == DriverLoad(0, 0) and passes == []
    assert len(ask(driver, work(prompt_of(1), logit_bias={119: 1.0})).wait()[0].tokens) == 30


def test_an_error_is_that_of_one_answer(drive):
    class Broken:
        def allowed(self) -> None:
            raise EdgeError("The grammar is at an end.")

        def advance(self, token: int) -> None:
            raise AssertionError

        def forced(self) -> Sequence[int]:
            return ()

        def fits(self, tokens: Sequence[int]) -> int:
            return 0

        @property
        def is_complete(self) -> bool:
            return False

    driver = drive()
    good = ask(driver, work(prompt_of(1)))
    bad = ask(driver, replace(work(prompt_of(2)), constraint=Broken))
    worse = ask(driver, replace(work(prompt_of(3)), constraint=lambda: 1 / 0))  # type: ignore[arg-type,return-value]
    assert "at an end" in str(bad.wait()[0])
    assert isinstance(worse.wait()[0], ZeroDivisionError)
    assert len(good.wait()[0].tokens) == 30
    assert len(ask(driver, work(prompt_of(4))).wait()[0].tokens) == 30


def test_a_pass_that_fails_ends_what_took_part(model, drive, monkeypatch):
    driver = drive()
    forward = model.executor.forward
    monkeypatch.setattr(model.executor, "forward", lambda steps: (_ for _ in ()).throw(MemoryError()))
    assert isinstance(ask(driver, work(prompt_of(1))).wait()[0], MemoryError)
    monkeypatch.setattr(model.executor, "forward", forward)
    assert len(ask(driver, work(prompt_of(1))).wait()[0].tokens) == 30


class Panic(BaseException):
    """As native code raises it, beside all Exceptions."""


def panic(*_: Any) -> Any:
    raise Panic


def test_a_panic_ends_what_took_part_and_nothing_else(model, drive, monkeypatch):
    driver = drive()
    with monkeypatch.context() as broken:
        broken.setattr(model.executor, "forward", panic)
        assert isinstance(ask(driver, work(prompt_of(1))).wait()[0], EdgeError)
    bad = ask(driver, replace(work(prompt_of(2)), constraint=panic))
    assert isinstance(bad.wait()[0], EdgeError)
    with monkeypatch.context() as broken:
        broken.setattr(Answer, "completion", panic)
        assert isinstance(ask(driver, work(prompt_of(3))).wait()[0], EdgeError)
    assert len(ask(driver, work(prompt_of(1))).wait()[0].tokens) == 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("place", ["_must_wait", "_take"])
def test_nobody_waits_for_a_thread_that_has_ended(drive, monkeypatch, place):
    driver = drive(parallel=2)
    begins = threading.Event()

    def held() -> None:
        begins.wait()

    first = ask(driver, replace(work(prompt_of(1)), constraint=held))
    others = ask(driver, work(prompt_of(2)), work(prompt_of(3)))
    monkeypatch.setattr(driver, place, panic)
    begins.set()
    for reader in (first, others):
        assert all("interrupted" in str(outcome) for outcome in reader.wait())
    with pytest.raises(ClosedError, match="start the server again"):
        ask(driver, work(prompt_of(4)))
    assert driver.load == DriverLoad(0, 0)


def test_memory_is_asked_for_again_when_an_answer_has_ended(model, drive, monkeypatch):
    """Each time the prefix cache is emptied, so not at every pass."""
    row = model.executor.config.kv_bytes_per_token(model.executor.info.kv_type)
    asked: list[int] = []

    def for_one() -> int:
        asked.append(1)
        return 60 * row

    monkeypatch.setattr("edge.engine.scheduler._ALWAYS_THERE", 0)
    monkeypatch.setattr("edge.engine.scheduler.available_memory", for_one)
    driver = drive(parallel=3)
    readers = [ask(driver, work(prompt_of(n))) for n in range(3)]
    assert [len(reader.wait()[0].tokens) for reader in readers] == [30] * 3
    assert len(asked) <= 9  # each answer once for itself, and the one that waits twice beside another


def test_who_waits_for_memory_may_cancel(model, drive, monkeypatch):
    row = model.executor.config.kv_bytes_per_token(model.executor.info.kv_type)
    monkeypatch.setattr("edge.engine.scheduler._ALWAYS_THERE", 0)
    monkeypatch.setattr("edge.engine.scheduler.available_memory", lambda: 500 * row)
    driver = drive(parallel=3)
    long = [ask(driver, work(prompt_of(n), max_new_tokens=400)) for n in range(3)]
    assert long[0].first.wait(60)
    long[2].handle.cancel()
    assert isinstance(long[2].wait()[0], NeverBegunError) and not long[1].outcomes
    long[0].handle.cancel()
    long[1].handle.cancel()
    assert long[0].wait()[0].stop_reason == "cancelled"


def test_close_lets_answers_end_or_ends_them(model, drive):
    driver = drive()
    reader = ask(driver, work(prompt_of(1)))
    driver.close(60)
    assert reader.wait()[0].stop_reason == "length"
    with pytest.raises(ClosedError):
        ask(driver, work(prompt_of(1)))

    driver = drive(parallel=1)
    running, waiting = ask(driver, work(prompt_of(1), max_new_tokens=900)), ask(driver, work(prompt_of(2)))
    assert running.first.wait(60)
    driver.close()
    assert running.wait()[0].stop_reason == "cancelled"
    assert isinstance(waiting.wait()[0], NeverBegunError)


def test_a_driver_that_stops_takes_no_more(drive):
    driver = drive()
    reader = ask(driver, work(prompt_of(0), max_new_tokens=900))
    assert reader.first.wait(60)
    driver.stop()
    with pytest.raises(ClosedError):
        ask(driver, work(prompt_of(1)))
    assert reader.wait()[0].stop_reason == "cancelled"


def test_other_threads_use_the_model_meanwhile(model, drive):
    expected = model.complete(prompt_of(5), **settings_of())
    driver = drive()
    readers = [ask(driver, work(prompt_of(n), max_new_tokens=100)) for n in range(3)]
    mine = [model.complete(prompt_of(5), **settings_of()) for _ in range(3)]
    assert all(facts(done) == facts(expected) for done in mine)
    assert all(len(reader.wait()[0].tokens) == 100 for reader in readers)


def test_an_idle_driver_sleeps(drive):
    driver = drive()
    ask(driver, work(prompt_of(1))).wait()
    clock = time.pthread_getcpuclockid(driver._thread.ident)

    def used() -> float:
        return time.clock_gettime(clock)

    before, mine = used(), time.thread_time()
    while time.thread_time() < mine + 0.2:  # one that does not sleep would have as much
        pass
    assert used() - before < 0.02


@pytest.fixture
def stored(model, tmp_path, monkeypatch) -> tuple[list[int], Held]:
    """A prompt that is in a file alone, and what holds up its reading."""
    prompt = prompt_of(7, 900) + prompt_of(8, 110)
    monkeypatch.setattr("edge.engine.prefix_files.LEAST_IN_FILE", 512)
    model.scheduler.prefixes = prefixes = PrefixCache(model.executor, 1 << 30, tmp_path)
    model.complete(prompt, **settings_of(max_new_tokens=1))
    prefixes.close()
    model.scheduler.prefixes = PrefixCache(model.executor, 1 << 30, tmp_path)
    assert model.scheduler.prefixes.statistics.in_files == 1
    held = Held(reading_cache)
    monkeypatch.setattr("edge.engine.prefix_files.reading_cache", held)
    return prompt, held


def test_others_go_on_while_a_prefix_is_read_from_a_file(drive, stored):
    prompt, held = stored
    driver = drive(parallel=2)
    slow = ask(driver, work(prompt, max_new_tokens=3))
    assert held.entered.wait(60)
    waiting = [ask(driver, work(prompt_of(n))) for n in range(3)]
    for reader in waiting:
        assert reader.wait()[0].stop_reason == "length"
    assert not slow.outcomes and driver.load == DriverLoad(0, 1)
    held.let_go.set()
    (done,) = slow.wait()
    assert done.reused_tokens == len(prompt) - 1


def test_what_is_read_from_a_file_has_its_place(drive, stored, passes):
    """No more answers run and come from files than may run."""
    prompt, held = stored
    driver = drive(parallel=1)
    slow = ask(driver, work(prompt, max_new_tokens=3))
    assert held.entered.wait(60)
    other = ask(driver, work(prompt_of(1)))
    passes.clear()
    held.let_go.set()
    slow.wait(), other.wait()
    assert passes[:1] == [[1]] and max(map(len, passes)) == 1


def test_a_request_that_waits_for_a_file_can_be_cancelled(drive, stored):
    prompt, held = stored
    driver = drive(parallel=1)
    slow = ask(driver, work(prompt))
    assert held.entered.wait(60) and slow.handle is not None
    other = ask(driver, work(prompt_of(1)))
    slow.handle.cancel()
    (outcome,) = slow.wait()
    assert isinstance(outcome, NeverBegunError)
    assert other.wait()[0].stop_reason == "length"
    assert driver.close(), "a file that is read does not hold it up"
    held.let_go.set()


def test_a_prefix_whose_file_is_damaged_is_computed(drive, stored, tmp_path):
    prompt, held = stored
    for path in tmp_path.glob("*.kv"):
        path.write_bytes(path.read_bytes()[:-9])
    held.let_go.set()
    (done,) = ask(drive(), work(prompt, max_new_tokens=2)).wait()
    assert done.reused_tokens == 0 and len(done.tokens) == 2


def test_a_call_that_hangs_does_not_hold_up_the_end(model, drive):
    """Of a reader, or of what makes a constraint."""
    for hangs in ("reader", "constraint"):
        held = Held(lambda *given: None)
        driver = Driver(model.session, model.tokenizer)
        one = work(prompt_of(1))
        if hangs == "constraint":
            one = replace(one, constraint=held)
        driver.submit([one], held if hangs == "reader" else print, print)
        assert held.entered.wait(60)
        assert not driver.close(patience=0)
        held.let_go.set()
        assert driver.close()


def test_the_executor_rests_while_nobody_asks(model, drive, monkeypatch) -> None:
    rests = threading.Semaphore(0)
    monkeypatch.setattr(model.executor, "rest", rests.release)
    driver = drive(rest_after=0.01)
    assert rests.acquire(timeout=60)
    (before,) = ask(driver, work(prompt_of(1))).wait()
    assert rests.acquire(timeout=60)
    (after,) = ask(driver, work(prompt_of(1))).wait()
    assert before.text == after.text


def test_an_executor_keeps_its_memory_if_it_is_not_told_to_rest(model, drive, monkeypatch) -> None:
    rests = threading.Semaphore(0)
    monkeypatch.setattr(model.executor, "rest", rests.release)
    driver = drive()
    ask(driver, work(prompt_of(1))).wait()
    assert not rests.acquire(timeout=0.1)
