"""Passes that several sequences share: the answers of each alone, whoever waits, joins, leaves or fails
meanwhile.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.engine.answer import Answer
from edge.engine.completion import Completion
from edge.engine.costs import PassCosts
from edge.engine.generation import generate
from edge.engine.prefix_cache import PrefixCache
from edge.engine.settings import merge_settings
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.runtime import Model
from tests.passes import watch

BATCH = 16


@pytest.fixture
def model(make_bundle, tiny_config) -> Iterator[Model]:
    bundle = make_bundle(replace(tiny_config, vocab_size=120, max_position_embeddings=2048), tokenizer=True)
    executor = open_executor(bundle, RunOptions(context=2048, threads=1, max_batch=BATCH))
    with Model(bundle, executor, name="tiny") as opened:
        yield opened


@pytest.fixture
def passes(model, monkeypatch) -> list[list[int]]:
    """The numbers of tokens of each pass's steps."""
    seen: list[list[int]] = []

    def recorded(sizes: list[int], run: Callable[[], Any]) -> Any:
        seen.append(sizes)
        time.sleep(0.001)  # a real model's pass leaves the other threads as much time, and more
        return run()

    watch(monkeypatch, model.executor, recorded)
    return seen


def prompt_of(n: int, length: int = 20) -> list[int]:
    return np.random.default_rng(n).integers(3, 110, length).tolist()


def answer(model: Model, prompt: list[int], **settings: Any) -> Completion:
    settings = {"seed": 3, "temperature": 1.0, "max_new_tokens": 30, "ignore_eos": True, **settings}
    return model.complete(prompt, **settings)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returns or raises, every one in a thread of its own; none may hang."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def work(index: int) -> None:
        start.wait()
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_answers_side_by_side_are_those_of_each_alone(model, passes):
    settings = [
        {},
        {"temperature": 0},
        {"repetition_penalty": 1.3},
        {"top_p": 0.5, "seed": 9},
        {"logprobs": 2},
    ]
    work = [(prompt_of(n, 7 + 11 * n), settings[n % 5]) for n in range(10)]
    alone = [answer(model, prompt, **some) for prompt, some in work]
    assert all(len(steps) == 1 for steps in passes)
    passes.clear()
    found = at_once([lambda p=prompt, s=some: answer(model, p, **s) for prompt, some in work])
    for one, wanted in zip(found, alone, strict=True):
        assert (one.tokens, one.text, one.logprobs) == (wanted.tokens, wanted.text, wanted.logprobs)
        assert one.tokens_per_second > 0 and one.ttft_seconds > 0
    assert max(len(steps) for steps in passes) > 4
    assert len(passes) < sum(len(one.tokens) for one in found) / 2


def test_a_long_prompt_holds_up_nobody(model, passes):
    """Every pass of it takes a token of the answer along, as long as that goes on; the prompt gets on too."""
    stream = model.stream(prompt_of(1), max_new_tokens=200, ignore_eos=True, seed=1)
    next(stream)
    passes.clear()
    long = threading.Thread(target=lambda: answer(model, prompt_of(2, 600), max_new_tokens=1))
    long.start()
    for _ in stream:
        pass
    long.join()
    mixed = [steps for steps in passes if len(steps) == 2]
    assert len(mixed) > 10
    assert all(1 in steps and 8 <= max(steps) <= BATCH - 1 for steps in mixed[1:-1])
    assert len(stream.result.tokens) == 200


def test_prompts_share_the_rows(model, passes):
    """A short one that comes later need not wait for a long one."""
    order: list[str] = []

    def run(name: str, length: int) -> None:
        answer(model, prompt_of(3, length), max_new_tokens=1)
        order.append(name)

    long = threading.Thread(target=run, args=("long", 1500))
    long.start()
    while not passes:
        pass
    run("short", 40)
    long.join()
    assert order == ["short", "long"]


def test_an_answer_that_nobody_reads_waits_a_few_tokens_ahead(model, passes):
    """Its result has what was read, and its session goes on from there."""
    idle = model.stream(prompt_of(4), max_new_tokens=100, ignore_eos=True, temperature=0)
    read = [next(idle).token, next(idle).token]
    answer(model, prompt_of(5))
    assert len([steps for steps in passes if len(steps) == 2]) in range(1, 6)
    idle.close()
    assert list(idle.result.tokens) == read and idle.result.stop_reason == "cancelled"
    alone = answer(model, prompt_of(4), temperature=0, max_new_tokens=2)
    assert list(alone.tokens) == read and alone.text == idle.result.text


def test_what_was_computed_ahead_is_read_later(model):
    wanted = answer(model, prompt_of(6), temperature=0)
    stream = model.stream(prompt_of(6), max_new_tokens=30, ignore_eos=True, temperature=0)
    next(stream)
    answer(model, prompt_of(5))
    rest = [chunk.token for chunk in stream if chunk.token is not None]
    assert tuple(rest) == wanted.tokens[1:]
    assert stream.result.tokens == wanted.tokens and stream.result.text == wanted.text


def test_a_session_is_usable_while_others_compute_ahead_for_it(model):
    """Its unfinished answer ends when it is wanted for something else."""
    session = model.session()
    stream = model.stream(prompt_of(7), session=session, ignore_eos=True, temperature=0)
    first = next(stream).token
    answer(model, prompt_of(5))
    session.truncate(10)
    assert session.length == 10 and stream.result.tokens == (first,)
    np.testing.assert_array_equal(session.prefill(prompt_of(7)), model.session().prefill(prompt_of(7)))


def test_a_job_fails_alone(model):
    """A token outside the vocabulary, and a bias outside of it, which the sampler finds."""
    outside = [5, 6, model.config.vocab_size]
    calls = [
        lambda: answer(model, prompt_of(8), max_new_tokens=60),
        lambda: model.session().prefill(outside),
        lambda: answer(model, prompt_of(9), logit_bias={model.config.vocab_size: 1.0}),
        lambda: answer(model, prompt_of(10), max_new_tokens=60),
    ]
    found = at_once(calls)
    assert isinstance(found[1], TokenizerError) and isinstance(found[2], TokenizerError)
    assert found[0].tokens == answer(model, prompt_of(8), max_new_tokens=60).tokens
    assert found[3].tokens == answer(model, prompt_of(10), max_new_tokens=60).tokens


@pytest.mark.parametrize("after", [True, False])
def test_an_interrupt_ends_the_work_of_one_thread(model, monkeypatch, after):
    """Before the pass has run or when it has: the others go on from where they were."""
    wanted = [answer(model, prompt_of(n), max_new_tokens=60) for n in (11, 12, 13)]
    count = 0

    def interrupted(_: list[int], run: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        results = run() if after or count != 20 else None
        if count == 20:
            raise KeyboardInterrupt
        return results

    watch(monkeypatch, model.executor, interrupted)
    found = at_once([lambda n=n: answer(model, prompt_of(n), max_new_tokens=60) for n in (11, 12, 13)])
    stopped = [one for one in found if isinstance(one, KeyboardInterrupt)]
    assert len(stopped) == 1
    for one, alone in zip(found, wanted, strict=True):
        assert one in stopped or one.tokens == alone.tokens


def test_an_observer_may_not_use_what_it_observes(model):
    session, found = model.session(), []

    def observer(_: bytes) -> None:
        try:
            session.prefill([5, 6])
        except EdgeError as error:
            found.append(str(error))

    model.executor.observe(observer)
    answer(model, prompt_of(1), max_new_tokens=1)
    model.executor.observe(None)
    assert found and all("in the middle of a call" in sentence for sentence in found)


def test_a_closed_model_ends_every_answer(model):
    streams = [model.stream(prompt_of(n), ignore_eos=True) for n in (1, 2)]
    for stream in streams:
        next(stream)
    model.executor.close()
    for stream in streams:
        with pytest.raises(NativeError, match="closed"):
            while True:
                next(stream)


def test_a_stream_that_is_let_go_leaves_the_passes(model, passes):
    stream = model.stream(prompt_of(1), ignore_eos=True)
    next(stream)
    del stream
    gc.collect()
    passes.clear()
    answer(model, prompt_of(2))
    assert all(len(steps) == 1 for steps in passes)


def test_costs_are_medians_between_which_lines_run():
    costs = PassCosts()
    assert costs.seconds(4, 100) is None and costs.rows_within(0.01, 100) == 4096
    costs.record(1, 100, 0.010)
    assert costs.seconds(8, 100) == pytest.approx(0.023)  # as it usually is
    costs.record(101, 500, 0.110)
    assert costs.seconds(51, 900) == pytest.approx(0.060)
    assert costs.rows_within(0.0601, 900) == 51
    assert costs.rows_within(0.001, 900) == 1
    assert costs.seconds(202, 900) == pytest.approx(0.220)
    assert costs.seconds(51, 100_000) == pytest.approx(0.060)  # no other depth is known
    costs.record(1, 100_000, 0.050)
    assert costs.seconds(1, 100_000) == pytest.approx(0.050) and costs.seconds(1, 900) == pytest.approx(0.010)
    for _ in range(3):
        costs.record(1, 100, 0.020)
    assert costs.seconds(1, 100) == 0.020  # the lower median of the latest


def test_more_sequences_than_memory_allows_are_refused_with_the_numbers(model, passes, monkeypatch):
    """Before anything is computed; those that run go on, and there is room again when they have ended."""
    monkeypatch.setattr("edge.engine.scheduler._ALWAYS_THERE", 0)
    row = model.config.kv_bytes_per_token(model.executor.info.kv_type)
    monkeypatch.setattr("edge.engine.scheduler.available_memory", lambda: 500 * row)
    first = model.stream(prompt_of(1, 100), max_new_tokens=300, ignore_eos=True, temperature=0)
    next(first)
    passes.clear()
    with pytest.raises(ContextError, match=r"KV caches of 2 sequences will take .* lower max_new_tokens"):
        answer(model, prompt_of(2, 100), max_new_tokens=200)
    assert not passes
    assert len(answer(model, prompt_of(2, 100), max_new_tokens=50).tokens) == 50
    first.close()
    assert len(answer(model, prompt_of(2, 100), max_new_tokens=200).tokens) == 200


def test_other_weights_answer_and_nothing_old_is_found(model):
    """`Model.update` forgets what was kept of earlier sequences."""
    prompt = prompt_of(3, 100)
    keeping = Model(model.files, model.executor, prefixes=PrefixCache(model.executor, 1 << 40))
    before = answer(keeping, prompt, temperature=0)
    assert answer(keeping, prompt, temperature=0).reused_tokens == 99
    name = next(name for name in model.files.tensors if name.endswith("down_proj.weight"))
    values = np.random.default_rng(0).normal(0, 1, model.files.tensors[name].shape).astype(np.float32)
    keeping.update({name: values})
    after = answer(keeping, prompt, temperature=0)
    assert after.reused_tokens == 0 and after.tokens != before.tokens


@pytest.mark.parametrize("at", [61, 62, 63])
def test_an_interrupt_between_two_tokens_changes_no_other_answer(model, passes, monkeypatch, at):
    """Whoever's token is being taken: others go on, with every chunk, unless it was theirs."""
    wanted = [answer(model, prompt_of(n), max_new_tokens=60).tokens for n in (11, 12, 13)]
    close, count = Answer.close_next, 0

    def interrupted(self: Answer, drawn: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        close(self, drawn)

    monkeypatch.setattr(Answer, "close_next", interrupted)

    def read(n: int) -> tuple[tuple[int | None, ...], Completion]:
        stream = model.stream(prompt_of(n), seed=3, temperature=1.0, max_new_tokens=60, ignore_eos=True)
        return tuple(chunk.token for chunk in stream if chunk.token is not None), stream.result

    found = at_once([lambda n=n: read(n) for n in (11, 12, 13)])
    assert sum(isinstance(one, KeyboardInterrupt) for one in found) == 1
    whole = [pair for pair in zip(found, wanted, strict=True) if not isinstance(pair[0], BaseException)]
    assert whole
    for (chunks, done), alone in whole:
        assert chunks == done.tokens == alone


def test_an_observer_of_several_answers_hangs_none(model):
    session, errors = model.session(), []

    def observer(_: bytes) -> None:
        try:
            session.prefill([5, 6])
        except EdgeError as error:
            errors.append(str(error))

    model.executor.observe(observer)
    found = at_once([lambda n=n: answer(model, prompt_of(n), max_new_tokens=20) for n in (1, 2, 3)])
    model.executor.observe(None)
    assert errors and all(len(one.tokens) == 20 for one in found)


def test_a_question_for_cancelling_that_fails_is_its_own_answers_fault(model, passes):
    settings = merge_settings(flags={"max_new_tokens": 60, "ignore_eos": True})
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        if asked > 5:
            raise ValueError("mine")
        return False

    def theirs() -> list[Any]:
        return list(generate(model.session(), prompt_of(5), settings, model.tokenizer, cancelled))

    found = at_once([theirs, *(lambda n=n: answer(model, prompt_of(n), max_new_tokens=60) for n in (1, 2))])
    assert isinstance(found[0], ValueError)
    assert all(len(one.tokens) == 60 for one in found[1:])


def test_prompts_come_to_an_end_beside_as_many_answers_as_a_pass_has_rows(model, passes):
    found = at_once([lambda n=n: answer(model, prompt_of(n, 200), max_new_tokens=40) for n in range(20)])
    assert all(len(one.tokens) == 40 for one in found)
    assert max(sum(steps) for steps in passes) <= BATCH


@pytest.mark.parametrize(("noise", "hiccups"), [(0.0, 0.0), (0.03, 0.01), (0.03, 0.03)])
def test_costs_recover_from_hiccups(noise: float, hiccups: float):
    """34 rows would take 45 ms; passes of four times their cost come in between."""
    random, costs, chosen = np.random.default_rng(1), PassCosts(), []
    for _ in range(5):
        costs.record(2, 600, 0.011)
        costs.record(256, 600, 0.278)
    for _ in range(1000):
        rows = costs.rows_within(0.045, 600)
        seconds = (0.009 + 0.00105 * rows) * random.lognormal(0, noise)
        costs.record(rows, 600, seconds * (4 if random.random() < hiccups else 1))
        chosen.append(rows)
    assert np.mean(chosen[200:]) == pytest.approx(34, rel=0.15)


def test_a_fault_that_is_no_edge_error_is_its_own_answers(model, passes, monkeypatch):
    tokenizer, wrong = model.tokenizer, threading.local()
    stream = tokenizer.stream

    class Broken:
        def push(self, token: int) -> str:
            raise OSError("mine")

        def flush(self) -> str:
            return ""

    def chosen(**named: Any) -> Any:
        return Broken() if getattr(wrong, "yes", False) else stream(**named)

    monkeypatch.setattr(tokenizer, "stream", chosen)

    def theirs() -> Completion:
        wrong.yes = True
        return answer(model, prompt_of(5), max_new_tokens=60)

    found = at_once([theirs, *(lambda n=n: answer(model, prompt_of(n), max_new_tokens=60) for n in (1, 2))])
    assert isinstance(found[0], OSError)
    assert all(len(one.tokens) == 60 for one in found[1:])


def test_one_row_in_a_pass_goes_to_everybody_in_turn(make_bundle, tiny_config):
    bundle = make_bundle(replace(tiny_config, vocab_size=120), tokenizer=True)
    executor = open_executor(bundle, RunOptions(context=256, threads=1, max_batch=1))
    with Model(bundle, executor, name="tiny") as model:
        found = at_once([lambda n=n: answer(model, prompt_of(n, 9), max_new_tokens=20) for n in range(4)])
        assert all(len(one.tokens) == 20 for one in found)
