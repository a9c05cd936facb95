"""Who may use a chat, and when: threads, tasks, interrupts, and what becomes of an answer that is left."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge.chat import Chat
from edge.engine.generation import Stream
from edge.engine.session import Session
from edge.errors import EdgeError
from tests.passes import watch

LONG = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
QUESTION = "Tell me a long story."


@pytest.fixture
def chat(smollm2) -> Chat:
    return smollm2.chat(**LONG)


@pytest.fixture(scope="module")
def whole(smollm2) -> tuple[int, ...]:
    """The tokens of the undisturbed answer."""
    return smollm2.chat(**LONG).send(QUESTION).tokens


def elsewhere(call: Callable[[], Any]) -> Any:
    """What `call` gives, or the EdgeError that it raises, in another thread."""

    def run() -> Any:
        try:
            return call()
        except EdgeError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(60)


def refused(call: Callable[[], Any]) -> bool:
    found = elsewhere(call)
    return isinstance(found, EdgeError) and "thread" in str(found)


def plain_session(chat: Chat) -> Session:
    """A session in which every call of the executor is a token: guesses may make one of many."""
    return Session(chat.session.executor, chat.session.scheduler, speculate=False)


USES = {
    "send": lambda chat: chat.send("Hello"),
    "stream": lambda chat: chat.stream("Hello"),
    "reset": lambda chat: chat.reset(),
    "save": lambda chat: chat.save("/nowhere/chat.json"),
    "system": lambda chat: setattr(chat, "system", "Be brief."),
    "messages": lambda chat: setattr(chat, "messages", []),
    "prefill": lambda chat: chat.session.prefill([5, 6]),
    "step": lambda chat: chat.session.step(5),
    "truncate": lambda chat: chat.session.truncate(0),
    "session.save": lambda chat: chat.session.save("/nowhere/cache.kv"),
}


@pytest.mark.parametrize("use", USES)
def test_another_thread_is_refused_between_two_chunks(chat, whole, use):
    stream = chat.stream(QUESTION)
    for at, _ in enumerate(stream):
        if at == 2:
            assert refused(lambda: USES[use](chat))
    assert stream.result.tokens == whole
    assert len(chat.messages) == 2 and chat.system is None


def test_another_thread_is_refused_inside_of_a_step(chat, whole, monkeypatch):
    """From the executor's own call: nothing else could be more in the middle."""
    chat.session = plain_session(chat)
    found = []

    def watched(_, run):
        if len(found) < 3:
            found.append(refused(lambda: chat.send("Hello")) and refused(lambda: next(stream)))
        return run()

    watch(monkeypatch, chat.session.executor, watched)
    stream = chat.stream(QUESTION)
    assert stream.result.tokens == whole and found == [True] * 3


def test_threads_that_start_at_once(smollm2, whole):
    """Threads that send at the same moment are answered one after another, or refused."""
    chat, gate = smollm2.chat(**LONG), threading.Barrier(4)

    def send() -> Any:
        gate.wait()
        return chat.send(QUESTION).tokens

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(send) for _ in range(4)]
    answers = [each.result() for each in results if each.exception() is None]
    assert answers and all(isinstance(each.exception(), (EdgeError, type(None))) for each in results)
    assert answers.count(whole) >= 1 and len(chat.messages) == 2 * len(answers)


def test_an_unfinished_answer_of_a_session_is_ended_by_the_next(smollm2):
    session = smollm2.session()
    first = smollm2.stream("One, two,", session=session, **LONG)
    next(first)
    alone = smollm2.complete("A, B,", **LONG).tokens
    assert smollm2.complete("A, B,", session=session, **LONG).tokens == alone
    assert first.result.stop_reason == "cancelled" and len(first.result.tokens) == 1


def test_after_cancelling_another_thread_goes_on(chat):
    stream = chat.stream(QUESTION)
    next(stream)
    stream.cancel()
    assert elsewhere(lambda: chat.send("Hello", max_new_tokens=2)).stop_reason == "length"
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2


def test_the_thread_of_an_unfinished_answer_may_end(chat):
    thread = threading.Thread(target=lambda: kept.append(chat.stream(QUESTION)))
    kept: list[Stream] = []
    thread.start()
    thread.join()
    assert chat.send("Hello", max_new_tokens=2).stop_reason == "length"
    assert kept[0].result.tokens == ()


def test_an_answer_that_nobody_holds_is_over(chat, whole):
    for count, _ in enumerate(chat.stream(QUESTION), 1):
        if count == 4:
            break
    gc.collect()
    assert [m.role for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[1].tokens == whole[:4]
    assert elsewhere(lambda: chat.send("Hello", max_new_tokens=2)).stop_reason == "length"


@pytest.mark.parametrize("step", [1, 2, 6])
def test_an_interrupt_keeps_what_there_is(chat, whole, monkeypatch, step):
    """A real signal while the executor works: its first call is the prefill."""
    chat.session = plain_session(chat)
    calls = 0

    def interrupted(_, run):
        nonlocal calls
        calls += 1
        result = run()
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    watch(monkeypatch, chat.session.executor, interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.send(QUESTION)
    monkeypatch.undo()
    if step == 1:
        assert chat.messages == ()
    else:
        assert [m.role for m in chat.messages] == ["user", "assistant"]
        assert chat.messages[1].tokens == whole[: step - 1]
        assert chat.messages[1].content == chat._tokenizer.decode(whole[: step - 1])
    again = chat.send("Go on.")
    assert again.stop_reason == "length" and (step == 1 or again.reused_tokens > 10)


def test_a_stream_is_asynchronous_too(chat, whole):
    async def talk() -> None:
        stream, ticks = chat.stream(QUESTION), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        chunks = [chunk async for chunk in stream]
        ticker.cancel()
        assert tuple(chunk.token for chunk in chunks if chunk.token is not None) == whole
        assert (await stream).tokens == whole and ticks > len(whole)
        done = await chat.stream("And now?", max_new_tokens=3)
        assert len(done.tokens) == 3
        async with chat.stream("And then?") as left:
            async for _ in left:
                break
        assert (await left).stop_reason == "cancelled" and len(left.result.tokens) == 1

    asyncio.run(talk())
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 3


@pytest.mark.parametrize("iterate", [True, False])
def test_a_cancelled_task_cancels_its_answer(chat, whole, iterate):
    async def talk() -> None:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        open_next = chat.session.open_next

        def step(*arguments: Any) -> Any:
            loop.call_soon_threadsafe(reached.set)
            return open_next(*arguments)

        chat.session.open_next = step
        stream = chat.stream(QUESTION, max_new_tokens=4000)

        async def consume() -> None:
            if iterate:
                async for _ in stream:
                    pass
            else:
                await stream

        task = asyncio.create_task(consume())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.result.stop_reason == "cancelled"
        assert 0 < len(stream.result.tokens) < 4000
        assert chat.messages[1].tokens == stream.result.tokens
        assert len((await chat.stream("Hello", max_new_tokens=2)).tokens) == 2

    asyncio.run(asyncio.wait_for(talk(), 60))


def in_child(model, chat, results) -> None:
    for use in (
        lambda: model.complete("Hi", max_new_tokens=1),
        lambda: chat.send("Hi"),
        lambda: chat.session.step(5),
        lambda: chat.session.executor.truncate(chat.session._cache, 0),
        lambda: model.close(),
    ):
        try:
            results.put(repr(use()))
        except EdgeError as error:
            results.put(str(error))


def test_a_forked_child_is_told_to_load_its_own(smollm2):
    """And the parent's model goes on."""
    context = multiprocessing.get_context("fork")
    chat, results = smollm2.chat(**LONG), context.Queue()
    before = chat.send(QUESTION).tokens
    child = context.Process(target=in_child, args=(smollm2, chat, results))
    child.start()
    told = [results.get(timeout=60) for _ in range(5)]
    child.join(60)
    assert child.exitcode == 0
    assert all("load the model here" in each for each in told[:4]) and told[4] == "None"
    assert smollm2.chat(**LONG).send(QUESTION).tokens == before
