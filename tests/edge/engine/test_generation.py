"""The decode loop on a real model: reasons to stop, stop strings across tokens, streaming, cancellation."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.engine.answer_settings import answer_ends
from edge.engine.completion import Completion
from edge.engine.constraints.grammar import Grammar
from edge.engine.generation import Stream, generate
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings, SamplingParams, merge_settings
from edge.engine.stop_strings import StopMatcher
from edge.errors import EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.runtime import Model

PROMPT = "Once upon a time, there was a"


def first_stop(text: str, stop: list[str]) -> str:
    """`text` up to the stop string that is complete first, found by looking at every beginning of it."""
    for end in range(len(text) + 1):
        ends = [s for s in stop if text[:end].endswith(s)]
        if ends:
            return text[: end - max(map(len, ends))]
    return text


@example("abcb", ["abcb", "bc"], [4])  # both in one piece, and the shorter one is complete first
@given(
    st.text("abc", max_size=24),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=1),
)
def test_stop_strings_are_found_however_the_text_arrives(text, stop, sizes):
    matcher = StopMatcher(stop)
    found, at = "", 0
    for size in itertools.cycle(sizes):
        if at >= len(text):
            break
        found += matcher.push(text[at : at + size])
        at += size
    expected = first_stop(text, stop)
    assert found + matcher.flush() == expected
    assert matcher.stopped == (expected != text or any(s in text for s in stop))


def test_what_may_begin_a_stop_string_is_held_back_and_no_more():
    matcher = StopMatcher(["</end>"])
    assert matcher.push("a <") == "a "
    assert matcher.push("/en") == ""
    assert matcher.push("x") == "</enx"
    assert matcher.push(" </end") == " "
    assert matcher.push("> b") == ""
    assert matcher.stopped and matcher.push("c") == "" and matcher.flush() == ""


def greedy(model, prompt=PROMPT, session=None, **settings) -> Completion:
    settings = {"temperature": 0, "max_new_tokens": 24, **settings}
    return model.complete(prompt, session=session, **settings)


@pytest.fixture(scope="module")
def story(smollm2) -> Completion:
    return greedy(smollm2)


def test_length_ends_an_answer(smollm2, story):
    assert (story.stop_reason, len(story.tokens)) == ("length", 24)
    assert story.prompt_tokens == len(smollm2.tokenizer.encode(PROMPT))
    assert story.text == smollm2.tokenizer.decode(story.tokens, continues=True)
    assert story.ttft_seconds > 0 and story.tokens_per_second > 0 and story.prefill_tokens_per_second > 0
    assert story.logprobs is None


def test_chunks_are_the_answer_in_pieces(smollm2, story):
    stream = smollm2.stream(PROMPT, temperature=0, max_new_tokens=24)
    chunks = list(stream)
    assert "".join(c.text for c in chunks) == stream.result.text == story.text
    assert [c.token for c in chunks if c.token is not None] == list(story.tokens)


def test_a_result_needs_no_iteration_and_can_be_read_again(smollm2, story):
    stream = smollm2.stream(PROMPT, temperature=0, max_new_tokens=24)
    assert stream.result.text == story.text
    assert stream.result is stream.result


def test_after_a_break_the_result_is_what_there_was(smollm2, story):
    session = smollm2.session()
    stream = smollm2.stream(PROMPT, session=session, temperature=0, max_new_tokens=24)
    for count, _chunk in enumerate(stream, 1):
        if count == 3:
            break
    computed = session.computed_tokens
    done = stream.result
    assert (done.stop_reason, done.tokens) == ("cancelled", story.tokens[:3])
    assert done.text == smollm2.tokenizer.decode(story.tokens[:3], continues=True)
    assert session.computed_tokens == computed and list(stream) == [] and stream.result is done


def test_an_answer_that_is_closed_in_its_middle_has_all_its_text(smollm2, story):
    """Also what was held back as the possible beginning of a stop string."""
    settings = merge_settings(flags={"temperature": 0, "stop": story.text[:6] + "never"})
    found: list[Completion] = []
    prompt = smollm2.tokenizer.encode(PROMPT)
    chunks = generate(
        *(smollm2.session(), prompt, settings, smollm2.tokenizer), ended=found.append, continues=True
    )
    assert next(chunks).text == ""
    chunks.close()
    assert found[0].text == smollm2.tokenizer.decode(story.tokens[:1], continues=True) != ""


def test_a_stop_string_that_spans_tokens(smollm2, story):
    """The middle of the answer, from inside one token to inside a later one."""
    pieces = [smollm2.tokenizer.token_bytes(t).decode() for t in story.tokens]
    at = len("".join(pieces[:6])) + 1
    stop = story.text[at : at + len(pieces[6]) + len(pieces[7])]
    assert not any(stop in piece for piece in pieces) and story.text.index(stop) == at
    stopped = greedy(smollm2, stop=["never in a story", stop])
    assert (stopped.stop_reason, stopped.text) == ("stop", story.text[:at])
    assert stopped.tokens == story.tokens[: len(stopped.tokens)]
    assert stop in smollm2.tokenizer.decode(stopped.tokens, continues=True)
    stream = smollm2.stream(PROMPT, temperature=0, max_new_tokens=24, stop=stop)
    assert "".join(c.text for c in stream) == story.text[:at]


def test_a_beginning_of_a_stop_string_alone_is_not_lost(smollm2, story):
    last = story.text[-3:]
    done = greedy(smollm2, stop=last + "never")
    assert (done.stop_reason, done.text) == ("length", story.text)


def test_any_of_several_end_tokens_ends_an_answer(smollm2, story):
    ends = [smollm2.config.vocab_size - 1, story.tokens[9]]
    first = story.tokens.index(story.tokens[9])
    done = greedy(smollm2, eos_token_id=ends)
    assert (done.stop_reason, done.tokens) == ("eos", story.tokens[:first])
    assert greedy(smollm2, eos_token_id=ends, ignore_eos=True).tokens == story.tokens


def forced(model, text: str, **settings) -> Completion:
    """The answer of a model that wants to say this token first, and what it likes after it."""
    return greedy(model, logit_bias={model.tokenizer.token_id(text): 1000}, max_new_tokens=3, **settings)


@pytest.mark.parametrize("name", ["<jupyter_start>", "<|im_start|>"])
def test_a_control_token_given_as_eos_or_stop_ends_an_answer(smollm2, name):
    assert smollm2.tokenizer.special_tokens[name] not in smollm2.tokenizer.eos_ids
    assert forced(smollm2, name).stop_reason == "length"
    for settings in ({"eos": name}, {"stop": name}, {"eos": str(smollm2.tokenizer.special_tokens[name])}):
        done = forced(smollm2, name, **settings)
        assert (done.stop_reason, done.tokens, done.text) == ("eos", (), "")
    assert forced(smollm2, name, stop=f"{name} and more").stop_reason == "length"


def test_eos_adds_to_the_models_own_and_eos_token_id_replaces_them(smollm2):
    end, other = "<|im_end|>", "<jupyter_start>"
    ids = smollm2.tokenizer.special_tokens
    settings = merge_settings(flags={"eos": other})
    assert answer_ends(settings, smollm2.tokenizer) == {*smollm2.tokenizer.eos_ids, ids[other]}
    assert forced(smollm2, end, eos=other).stop_reason == "eos"
    assert forced(smollm2, end, eos_token_id=ids[other]).stop_reason == "length"
    assert forced(smollm2, end, eos_token_id=ids[other], eos=end).stop_reason == "eos"
    assert forced(smollm2, end, ignore_eos=True, eos=end).stop_reason == "length"
    assert forced(smollm2, end, ignore_eos=True, stop=end).stop_reason == "eos"
    with pytest.raises(EdgeError, match="has no token '<nothing>'"):
        greedy(smollm2, eos="<nothing>")
    with pytest.raises(EdgeError, match="has no token '<nothing>'"):
        smollm2.chat(eos="<nothing>")  # before a message is sent


def test_the_models_own_end_token_ends_an_answer(smollm2):
    done = smollm2.chat().send("Say hi.", temperature=0, max_new_tokens=100)
    assert done.stop_reason == "eos"
    assert smollm2.tokenizer.eos_ids.isdisjoint(done.tokens)


def test_a_full_context_ends_an_answer(tiny_executor, smollm2):
    session = Session(tiny_executor)
    settings = GenerationSettings(SamplingParams(seed=0), ignore_eos=True)
    stream = Stream(
        lambda cancelled, ended: generate(session, [1] * 40, settings, smollm2.tokenizer, cancelled, ended)
    )
    done = stream.result
    assert done.stop_reason == "context"
    # The last token needs no place: nothing comes after it.
    assert len(done.tokens) == tiny_executor.context - 40 + 1 and session.length == tiny_executor.context


def test_cancelling_from_another_thread(smollm2):
    stream = smollm2.stream(PROMPT, ignore_eos=True, max_new_tokens=2000, seed=1)
    seen = threading.Event()

    def cancel() -> None:
        seen.wait()
        stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    for count, _ in enumerate(stream):
        if count == 3:
            seen.set()
            thread.join()
    assert stream.result.stop_reason == "cancelled"
    assert len(stream.result.tokens) == 4


def test_cancelling_during_prefill(smollm2):
    session = smollm2.session()
    chunk = smollm2.executor.max_batch
    prompt = [5] * (3 * chunk)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    stream = Stream(
        lambda _, ended: generate(session, prompt, merge_settings(), smollm2.tokenizer, cancelled, ended)
    )
    done = stream.result
    assert (done.stop_reason, done.tokens, done.text, done.ttft_seconds) == ("cancelled", (), "", None)
    assert session.length == 2 * chunk


def test_leaving_a_with_block_cancels(smollm2):
    with smollm2.stream(PROMPT, ignore_eos=True, max_new_tokens=2000) as stream:
        next(stream)
    assert stream.result.stop_reason == "cancelled"


def test_a_session_is_reused(smollm2, story):
    session = smollm2.session()
    first = greedy(smollm2, session=session, max_new_tokens=5)
    again = greedy(smollm2, PROMPT + " little", session=session, max_new_tokens=1)
    assert first.reused_tokens == 0
    assert again.reused_tokens >= len(smollm2.tokenizer.encode(PROMPT))
    assert session.computed_tokens < first.prompt_tokens + 5 + again.prompt_tokens


def test_the_seed_of_an_answer_repeats_it(smollm2):
    first = smollm2.complete(PROMPT, temperature=1.5, max_new_tokens=10)
    again = smollm2.complete(PROMPT, temperature=1.5, max_new_tokens=10, seed=first.seed)
    assert again.tokens == first.tokens and again.seed == first.seed
    assert smollm2.complete(PROMPT, temperature=1.5, max_new_tokens=10).tokens != first.tokens


def test_logprobs_come_with_chunks_and_result(smollm2, story):
    stream = smollm2.stream(PROMPT, temperature=0, max_new_tokens=5, logprobs=3)
    chunks = [c for c in stream if c.token is not None]
    done = stream.result
    assert len(done.logprobs) == 5
    for chunk, entry in zip(chunks, done.logprobs, strict=True):
        assert (chunk.token, chunk.logprob, chunk.top) == (entry.token, entry.logprob, entry.top)
        assert len(entry.top) == 3 and entry.top[0] == (entry.token, entry.logprob)
        assert entry.logprob <= 0


def test_a_presence_penalty_counts_the_answer_and_a_repetition_penalty_the_prompt_too(smollm2):
    prompt = "one two one two one two one two one two"
    ids = smollm2.tokenizer.encode(prompt)
    plain = greedy(smollm2, prompt, max_new_tokens=8)
    assert plain.tokens[0] in ids and len(set(plain.tokens)) < len(plain.tokens)
    once = greedy(smollm2, prompt, max_new_tokens=8, presence_penalty=100.0)
    assert once.tokens[0] == plain.tokens[0] and len(set(once.tokens)) == len(once.tokens)
    new = greedy(smollm2, prompt, max_new_tokens=8, repetition_penalty=100.0)
    assert set(new.tokens).isdisjoint(ids) and len(set(new.tokens)) == len(new.tokens)


def test_a_repetition_penalty_below_one_favours_the_prompts_tokens(smollm2, story):
    ids = smollm2.tokenizer.encode(PROMPT)
    assert story.tokens[0] not in ids
    assert greedy(smollm2, max_new_tokens=1, repetition_penalty=0.01).tokens[0] in ids


def test_a_bias_forbids_a_token(smollm2, story):
    assert greedy(smollm2, logit_bias={story.tokens[0]: float("-inf")}).tokens[0] != story.tokens[0]


def test_half_a_character_never_appears(smollm2):
    """Force the bytes of an emoji one by one; then stop in its middle."""
    ids = smollm2.tokenizer.encode("🦊")
    assert len(ids) > 1
    session = smollm2.session()
    stream = smollm2.tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) == "🦊"
    bias = {ids[0]: 1e4}
    cut = smollm2.complete("Hi", session=session, temperature=0, max_new_tokens=1, logit_bias=bias)
    assert cut.text == "\ufffd" and cut.tokens == (ids[0],)


def test_rates_count_what_was_computed(make_bundle, tiny_config, monkeypatch):
    """A clock that goes on by a second each time: prefill takes one, and every token after the first."""
    ticks = itertools.count()
    monkeypatch.setattr("edge.engine.scheduler.perf_counter", lambda: float(next(ticks)))
    bundle = make_bundle(replace(tiny_config, vocab_size=120), tokenizer=True)
    executor = open_executor(bundle, RunOptions(context=64, threads=1))
    with Model(bundle, executor, name="tiny") as model:
        session, prompt = model.session(), [5, 9, 33, 2, 61]
        first = greedy(model, prompt, session, max_new_tokens=6, ignore_eos=True)
        assert first.tokens_per_second == 1
        assert (first.prefill_tokens_per_second, first.ttft_seconds) == (5, 2)
        end = first.tokens[4]
        length = first.tokens.index(end)
        ended = greedy(model, prompt, session, max_new_tokens=6, eos_token_id=end)
        assert (ended.stop_reason, ended.tokens) == ("eos", first.tokens[:length])
        assert length > 1 and ended.tokens_per_second == 1  # the end token took a step as well
        assert (ended.reused_tokens, ended.prefill_tokens_per_second) == (4, 1)


def test_a_stream_that_failed_says_why(smollm2):
    forbidden = dict.fromkeys(smollm2.tokenizer.encode("a", add_bos=False), -math.inf)
    stream = smollm2.stream(PROMPT, response_format=Grammar.regex("a"), logit_bias=forbidden)
    with pytest.raises(EdgeError, match="No token is allowed"):
        next(stream)
    with pytest.raises(EdgeError, match="No token is allowed"):
        _ = stream.result
