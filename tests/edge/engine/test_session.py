"""Prompt reuse and the agreement of a session's mirror with its cache, on a small real network."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from edge.engine.session import Session
from edge.errors import ContextError, EdgeError, TokenizerError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions

PROMPT = [5, 9, 33, 2, 61, 17, 8, 8, 70, 4, 12, 25, 41, 3, 66, 1, 30, 19, 52, 7]


@pytest.fixture
def session(tiny_executor) -> Session:
    return Session(tiny_executor)


def cold(executor, tokens) -> np.ndarray:
    logits = Session(executor).prefill(tokens)
    assert logits is not None
    return logits


def assert_consistent(session: Session, tokens) -> None:
    assert session.length == len(tokens)
    assert session.tokens.tolist() == list(tokens)


def test_a_prompt_fills_the_cache_in_chunks(session):
    assert session.executor.max_batch < len(PROMPT)
    assert session.prefill(PROMPT).shape == (session.executor.config.vocab_size,)
    assert_consistent(session, PROMPT)
    assert (session.reused_tokens, session.computed_tokens) == (0, len(PROMPT))


def test_a_chunk_may_be_longer_than_all_before_it(make_bundle, tiny_config, tokens_of):
    bundle = make_bundle(replace(tiny_config, num_hidden_layers=1, max_position_embeddings=640))
    prompt = tokens_of(bundle.config, 600)
    session = Session(open_executor(bundle, RunOptions(context=640, threads=1, max_batch=640)))
    session.prefill(prompt)
    assert_consistent(session, prompt)
    session.executor.close()


def test_stepping_equals_prefill(session):
    session.prefill(PROMPT[:7])
    for token in PROMPT[7:]:
        logits = session.step(token)
    np.testing.assert_allclose(logits, cold(session.executor, PROMPT), rtol=1e-4, atol=1e-5)
    assert_consistent(session, PROMPT)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17])
def test_a_prompt_of_whole_chunks_has_logits_too(session, length):
    assert session.executor.max_batch == 8
    logits = session.prefill(PROMPT[:length])
    stepped = Session(session.executor)
    expected = [stepped.step(token) for token in PROMPT[:length]][-1]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [0, 1, 8, 13, 19])
def test_a_shared_prefix_is_not_computed_again(session, shared):
    session.prefill(PROMPT)
    changed = [*PROMPT[:shared], *((t + 1) % 77 for t in PROMPT[shared:])]
    logits = session.prefill(changed)
    np.testing.assert_allclose(logits, cold(session.executor, changed), rtol=1e-4, atol=1e-5)
    assert (session.reused_tokens, session.computed_tokens) == (shared, 2 * len(PROMPT) - shared)
    assert_consistent(session, changed)


@pytest.mark.parametrize("length", [1, 12, len(PROMPT)])
def test_a_prompt_that_is_in_the_cache_computes_its_last_token(session, length):
    session.prefill(PROMPT)
    logits = session.prefill(PROMPT[:length])
    np.testing.assert_allclose(logits, cold(session.executor, PROMPT[:length]), rtol=1e-4, atol=1e-5)
    assert session.computed_tokens == len(PROMPT) + 1
    assert_consistent(session, PROMPT[:length])


def test_cancelling_between_chunks_leaves_a_part_that_is_reused(session):
    asked = iter([False, True])
    assert session.prefill(PROMPT, lambda: next(asked)) is None
    part = session.executor.max_batch
    assert_consistent(session, PROMPT[:part])
    logits = session.prefill(PROMPT)
    np.testing.assert_allclose(logits, cold(session.executor, PROMPT), rtol=1e-4, atol=1e-5)
    assert session.reused_tokens == part


def test_a_failure_in_the_middle_leaves_what_was_done(session):
    batch = session.executor.max_batch
    outside = [*PROMPT[: batch + 2], session.executor.config.vocab_size]
    with pytest.raises(TokenizerError):
        session.prefill(outside)
    assert_consistent(session, PROMPT[:batch])
    with pytest.raises(TokenizerError):
        session.step(-1)
    assert_consistent(session, PROMPT[:batch])
    logits = session.prefill(PROMPT)
    np.testing.assert_allclose(logits, cold(session.executor, PROMPT), rtol=1e-4, atol=1e-5)


def test_an_interrupt_after_the_step_leaves_the_cache_as_it_was(session, monkeypatch):
    """Ctrl-C arrives when the native call has returned and the cache has grown already."""
    session.prefill(PROMPT)
    forward = session.executor.forward

    def interrupted(*args, **kwargs):
        forward(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(session.executor, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.step(3)
    assert_consistent(session, PROMPT)


def test_the_context_is_a_limit_and_no_crash(session):
    full = [t % 77 for t in range(session.context)]
    session.prefill(full)
    assert_consistent(session, full)
    with pytest.raises(ContextError):
        session.step(1)
    with pytest.raises(ContextError, match=f"{len(full) + 1} tokens and the context holds {len(full)}"):
        session.prefill([*full, 1])
    assert_consistent(session, full)


def test_an_empty_prompt_is_refused(session):
    with pytest.raises(EdgeError, match="empty"):
        session.prefill([])


def test_truncate_and_reset(session):
    session.prefill(PROMPT)
    session.truncate(5)
    assert_consistent(session, PROMPT[:5])
    session.truncate(9)
    assert_consistent(session, PROMPT[:5])
    session.truncate(0)
    assert_consistent(session, [])
    session.prefill(PROMPT)
    with pytest.raises(EdgeError, match="cut to -1 tokens: give 0 or more"):
        session.truncate(-1)
    assert_consistent(session, PROMPT)
    session.reset()
    assert_consistent(session, [])


def test_sessions_of_several_threads_share_an_executor(tiny_executor):
    prompts = [[(t * k + k) % 77 for t in range(30)] for k in range(1, 5)]
    truth = [cold(tiny_executor, p) for p in prompts]
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        session = Session(tiny_executor)
        session.prefill(prompts[k][:10])
        for token in prompts[k][10:]:
            found[k] = session.step(token)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, logits in enumerate(truth):
        np.testing.assert_allclose(found[k], logits, rtol=1e-4, atol=1e-5)
