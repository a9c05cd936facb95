"""Prefixes that sessions find of each other: the longest one, the same bits, within a limit, in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.engine.prefix_cache import PrefixCache, PrefixStatistics
from edge.engine.prefix_files import LEAST_IN_FILE
from edge.engine.prefix_tree import BLOCK
from edge.engine.saver import Saver
from edge.engine.scheduler import Scheduler
from edge.engine.session import Session
from edge.errors import EdgeError
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep, run_step
from edge.formats.kv_file import reading_cache, write_cache
from tests.held import Held

MUCH = 1 << 40


@pytest.fixture
def open_one(make_bundle, tiny_config) -> Callable[..., NativeExecutor]:
    bundle = make_bundle(replace(tiny_config, max_position_embeddings=4096))

    def one(**options) -> NativeExecutor:
        return open_executor(
            bundle, RunOptions(threads=1, **{"context": 4096, "kv_type": "int16", **options})
        )

    return one


@pytest.fixture
def executor(open_one):
    executor = open_one()
    yield executor
    executor.close()


def tokens_of(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 77, length).astype(np.int32)


def session_of(executor, prefixes) -> Session:
    return Session(executor, Scheduler(executor, prefixes))


def keep(executor, prefixes: PrefixCache, tokens: np.ndarray) -> None:
    session = Session(executor)
    session.prefill(tokens)
    prefixes.put(session.tokens, session._cache)


def test_another_session_goes_on_from_what_one_has_computed(executor):
    """To the same bits, with a beginning that it shares and not with one that it does not."""
    prefixes = PrefixCache(executor, MUCH)
    shared, mine, yours = tokens_of(700), tokens_of(50, 2), tokens_of(80, 3)
    keep(executor, prefixes, np.concatenate([shared, mine]))
    session = session_of(executor, prefixes)
    found = session.prefill(np.concatenate([shared, yours]))
    assert (session.reused_tokens, session.computed_tokens) == (700, 80)
    np.testing.assert_array_equal(found, Session(executor).prefill(np.concatenate([shared, yours])))
    assert session.tokens.tolist() == [*shared, *yours]
    other = session_of(executor, prefixes)
    other.prefill(tokens_of(300, 9))
    assert other.reused_tokens == 0
    assert (prefixes.statistics.hits, prefixes.statistics.rows) == (1, 700)


def test_the_whole_prompt_is_kept_and_its_last_token_is_computed(executor):
    prefixes, tokens = PrefixCache(executor, MUCH), tokens_of(200)
    keep(executor, prefixes, tokens)
    session = session_of(executor, prefixes)
    np.testing.assert_array_equal(session.prefill(tokens), Session(executor).prefill(tokens))
    assert (session.reused_tokens, session.computed_tokens) == (199, 1)


def test_less_than_a_block_more_than_a_session_has_is_left(executor):
    prefixes, tokens = PrefixCache(executor, MUCH), tokens_of(400)
    keep(executor, prefixes, tokens)
    session = session_of(executor, prefixes)
    session.prefill(tokens[: 300 - BLOCK + 1])
    cache = session._cache
    session.prefill(np.concatenate([tokens[:300], [5]]))
    assert session._cache is cache
    session.prefill(tokens)
    assert session._cache is not cache


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_longest_is_found(data):
    """Against a search of everything, with sequences that branch at any place."""
    prefixes = PrefixCache.__new__(PrefixCache)
    executor = Rows()
    PrefixCache.__init__(prefixes, executor, MUCH)
    kept: list[np.ndarray] = []
    for _ in range(data.draw(st.integers(1, 12))):
        length = data.draw(st.integers(1, 300))
        tokens = tokens_of(length, data.draw(st.integers(0, 1)))
        if kept:
            other = kept[data.draw(st.integers(0, len(kept) - 1))]
            shared = data.draw(st.integers(0, min(length, len(other))))
            tokens[:shared] = other[:shared]
        wanted = max((common(tokens, one) for one in kept), default=0)
        found = prefixes.find(tokens, more_than=0)
        assert (0 if found is None else found[1]) == (wanted if wanted >= BLOCK else 0)
        if found is not None:
            np.testing.assert_array_equal(found[0].tokens, tokens[: found[1]])
        prefixes.put(tokens, Row(tokens))
        if length >= BLOCK:
            kept.append(tokens)


class Row:
    """A cache that is its tokens."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.length = self.capacity = len(tokens)


class Rows:
    """What a prefix cache wants of an executor, without any arithmetic."""

    cache_bytes = 0
    context = 1000

    class capabilities:
        cache_files = False

    def new_cache(self) -> Row:
        return Row(np.empty(0, np.int32))

    def fork(self, cache: Row, n: int) -> Row:
        return Row(cache.tokens[:n].copy())


def common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    return next((at for at in range(n) if a[at] != b[at]), n)


def test_a_longer_sequence_takes_the_place_of_its_beginning(executor):
    prefixes, tokens = PrefixCache(executor, MUCH), tokens_of(600)
    for length in (200, 400, 600, 300):
        keep(executor, prefixes, tokens[:length])
    assert prefixes.statistics.sequences == 1


def test_what_was_used_longest_ago_goes_first(executor):
    size = one_sequence(executor)
    prefixes = PrefixCache(executor, 3 * size)
    for seed in range(1, 4):
        keep(executor, prefixes, tokens_of(300, seed))
    assert prefixes.find(tokens_of(300, 1), more_than=0) is not None
    keep(executor, prefixes, tokens_of(300, 4))
    there = [seed for seed in range(1, 5) if prefixes.find(tokens_of(300, seed), more_than=0) is not None]
    assert there == [1, 3, 4]
    assert executor.cache_bytes <= 3 * size
    prefixes.forget()
    assert executor.cache_bytes == 0 and prefixes.statistics.sequences == 0


def one_sequence(executor) -> int:
    session = Session(executor)
    session.prefill(tokens_of(300))
    return executor.cache_bytes


def test_what_leaves_memory_comes_back_from_a_file(open_one, tmp_path: Path):
    """Also in a later process, which has other files of other settings there."""
    executor, tokens = open_one(), tokens_of(LEAST_IN_FILE + 100)
    wanted = Session(executor).prefill(tokens)
    prefixes = PrefixCache(executor, 0, tmp_path)
    keep(executor, prefixes, tokens)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE - 1, 2))  # not worth a file
    assert prefixes.statistics.in_files == prefixes.statistics.sequences == 1
    assert executor.cache_bytes == 0
    (path,) = tmp_path.glob("*.kv")
    assert path.stat().st_mode & 0o077 == 0
    for again in (prefixes, PrefixCache(executor, MUCH, tmp_path)):
        session = session_of(executor, again)
        np.testing.assert_array_equal(session.prefill(tokens), wanted)
        assert session.reused_tokens == len(tokens) - 1
    for options in (
        {"kv_type": "float16"},
        {"activations": "float32"},
        {"context": 2048},
        {"tier": "portable"},
    ):
        other = open_one(**options)
        elsewhere = PrefixCache(other, MUCH, tmp_path)
        same_rope = options == {"context": 2048}
        assert elsewhere.statistics.sequences == int(same_rope), options
        other.close()
    executor.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_file_that_can_not_be_used_is_forgotten(executor, tmp_path: Path, damage: str):
    prefixes, tokens = PrefixCache(executor, 0, tmp_path), tokens_of(LEAST_IN_FILE)
    keep(executor, prefixes, tokens)
    (path,) = tmp_path.glob("*.kv")
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-7] if damage == "cut" else data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    session = session_of(executor, prefixes)
    np.testing.assert_array_equal(session.prefill(tokens), Session(executor).prefill(tokens))
    assert session.reused_tokens == 0 and prefixes.statistics.sequences == 0


def test_files_have_a_limit_too(executor, tmp_path: Path):
    prefixes = PrefixCache(executor, 0, tmp_path)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE, 1))
    (first,) = tmp_path.glob("*.kv")
    limited = PrefixCache(executor, 0, tmp_path, most_file_bytes=2 * first.stat().st_size + 100)
    for seed in (2, 3):
        keep(executor, limited, tokens_of(LEAST_IN_FILE, seed))
    assert not first.exists() and len(list(tmp_path.glob("*.kv"))) == 2
    assert limited.statistics.sequences == 2


def test_a_full_disk_costs_a_prefix_and_nothing_else(executor, tmp_path: Path):
    blocked = tmp_path / "a file"
    blocked.write_text("in the way of a folder")
    prefixes = PrefixCache(executor, 0, blocked)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE))
    assert prefixes.statistics.sequences == 0 and executor.cache_bytes == 0


def test_a_model_keeps_prefixes_unless_told_otherwise(smollm2_gguf, tmp_path: Path):
    import edge

    prompt = "The quick brown fox jumps over the lazy dog. " * 12
    with edge.load(smollm2_gguf, threads=1, context=512) as model:
        first = model.complete(prompt + "And", max_new_tokens=4, temperature=0)
        again = model.complete(prompt + "And", max_new_tokens=4, temperature=0)
        assert first.reused_tokens == 0 and again.reused_tokens == again.prompt_tokens - 1
        assert again.tokens == first.tokens
        other = model.complete(prompt + "Then", max_new_tokens=4, temperature=0)
        assert other.reused_tokens > 100
    with edge.load(smollm2_gguf, threads=1, context=512, prefix_memory=0) as model:
        for _ in range(2):
            assert model.complete(prompt, max_new_tokens=1).reused_tokens == 0
    with pytest.raises(EdgeError, match="prefix_memory"):
        edge.load(smollm2_gguf, prefix_memory=-1)


def test_memory_and_time_of_a_long_prefix(open_one):
    """A second sequence that shares most of a first costs its own rows, and no copy of theirs."""
    executor = open_one(context=4096)
    tokens = tokens_of(4000)
    session = Session(executor)
    session.prefill(tokens[:8])
    executor.repeat(session._cache, 4000)
    prefixes = PrefixCache(executor, MUCH)
    prefixes.put(tokens, session._cache)
    alone = executor.cache_bytes
    found = prefixes.find(tokens[:3990], more_than=0)
    assert found is not None and found[1] == 3990
    run_step(executor, SequenceStep(found[0], [5]))
    assert executor.cache_bytes - alone <= alone / 15
    executor.close()


def test_a_folder_has_everything_when_the_model_is_closed(open_one, tmp_path: Path):
    """What no limit had sent there, and a longer sequence beside the file of its beginning."""
    executor, tokens = open_one(), tokens_of(LEAST_IN_FILE + 300)
    for length in (LEAST_IN_FILE + 100, LEAST_IN_FILE + 300):
        prefixes = PrefixCache(executor, MUCH, tmp_path)
        keep(executor, prefixes, tokens[:length])
        prefixes.close()
    later = PrefixCache(executor, MUCH, tmp_path)
    session = session_of(executor, later)
    session.prefill(tokens)
    assert session.reused_tokens == len(tokens) - 1
    executor.close()


def test_what_has_grown_is_saved_and_takes_the_place_of_its_beginning(open_one, tmp_path: Path):
    """While the process lives: one that is killed then leaves it behind."""
    first = open_one()
    prefixes = PrefixCache(first, MUCH, tmp_path)
    tokens = tokens_of(2000)

    def saved(length: int) -> list[int]:
        """Tokens of the files after a sequence of so many has been kept."""
        keep(first, prefixes, tokens[:length])
        prefixes.save()
        again = PrefixCache(first, MUCH, tmp_path)
        return sorted(len(each) for each in again.token_lists())

    assert saved(LEAST_IN_FILE - 1) == []
    assert saved(1100) == [1100]
    assert saved(1150) == [1100]  # it would be written for every token otherwise
    assert saved(1300) == [1300]
    assert saved(1310) == [1300]
    keep(first, prefixes, tokens_of(1200, 5))  # another one
    assert saved(2000) == [1200, 2000]
    first.close()

    second = open_one()
    session = session_of(second, PrefixCache(second, MUCH, tmp_path))
    session.prefill(np.concatenate([tokens, tokens_of(20, 9)]))
    assert session.reused_tokens == 2000
    second.close()


def test_what_can_not_be_saved_is_not_tried_again(executor, tmp_path: Path):
    folder = tmp_path / "taken"
    folder.write_text("no folder")
    prefixes = PrefixCache(executor, MUCH, folder)
    keep(executor, prefixes, tokens_of(1200))
    prefixes.save()
    assert prefixes.statistics.sequences == 1 and prefixes._unsaved() is None


def test_more_than_the_folder_may_hold_is_written_once(executor, tmp_path: Path, monkeypatch):
    """Sequences in memory, whose files make each other go."""
    written: list[int] = []

    def counted(path: Path, identity: Any, tokens: np.ndarray, *rest: Any) -> None:
        written.append(len(tokens))
        assert len(written) <= 4, "a sequence is written again and again"
        write_cache(path, identity, tokens, *rest)

    monkeypatch.setattr("edge.engine.prefix_files.write_cache", counted)
    prefixes = PrefixCache(executor, MUCH, tmp_path, most_file_bytes=1)
    for seed in range(3):
        keep(executor, prefixes, tokens_of(LEAST_IN_FILE, seed))
    prefixes.save()
    assert written == [LEAST_IN_FILE] * 3 and len(list(tmp_path.glob("*.kv"))) == 1
    assert prefixes.statistics.sequences == 3 and prefixes.statistics.in_files == 0
    keep(executor, prefixes, np.concatenate([tokens_of(LEAST_IN_FILE, 0), tokens_of(200, 9)]))
    prefixes.save()
    assert written[3:] == [LEAST_IN_FILE + 200]  # it has grown


def test_what_is_left_when_the_thread_shall_end_is_not_written(executor, tmp_path: Path):
    prefixes = PrefixCache(executor, MUCH, tmp_path)
    for seed in range(3):
        keep(executor, prefixes, tokens_of(LEAST_IN_FILE, seed))
    prefixes.save(lambda: len(list(tmp_path.glob("*.kv"))) == 2)
    assert len(list(tmp_path.glob("*.kv"))) == 2


def test_statistics_do_not_wait_for_a_file(executor, tmp_path: Path, monkeypatch):
    """A server's thread for all its requests asks for them."""
    prefixes = PrefixCache(executor, 0, tmp_path)
    seen: list[PrefixStatistics] = []

    def asked_meanwhile(*given: Any) -> None:
        asking = Thread(target=lambda: seen.append(prefixes.statistics), daemon=True)
        asking.start()
        asking.join(30)
        assert seen, "it waits for the file"
        write_cache(*given)

    monkeypatch.setattr("edge.engine.prefix_files.write_cache", asked_meanwhile)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE))
    assert [each.sequences for each in seen] == [1]
    assert prefixes.statistics.in_files == 1


def test_files_of_others_stay_as_they_are(executor, tmp_path: Path):
    """A user's own in the same folder, one that goes nowhere, and all of ours when weights change."""
    own, nowhere = tmp_path / "my chat.kv", tmp_path / f"{'0' * 32}.kv"
    own.write_bytes(b"mine")
    nowhere.symlink_to(tmp_path / "absent")
    prefixes = PrefixCache(executor, 0, tmp_path, most_file_bytes=0)
    for seed in (1, 2):
        keep(executor, prefixes, tokens_of(LEAST_IN_FILE, seed))
    assert own.read_bytes() == b"mine"
    ours = [path for path in tmp_path.glob("*.kv") if path not in (own, nowhere)]
    assert len(ours) == 1
    prefixes.leave_memory()
    prefixes.forget()
    assert ours[0].exists() and prefixes.statistics.sequences == 0


def test_a_file_that_is_longer_than_the_context_is_left_out(open_one, tmp_path: Path):
    long, short = open_one(), open_one(context=1200)
    first = PrefixCache(long, 0, tmp_path)
    keep(long, first, tokens_of(1500))
    session = session_of(short, PrefixCache(short, MUCH, tmp_path))
    session.prefill(tokens_of(1500)[:1100])
    assert session.reused_tokens == 0
    for executor in (long, short):
        executor.close()


def test_rows_of_old_weights_are_not_found(executor):
    """Of sessions that go on without a reset, and of one that ends after the change."""
    prefixes, tokens = PrefixCache(executor, MUCH), tokens_of(300)
    old, before = session_of(executor, prefixes), session_of(executor, prefixes)
    old.prefill(tokens)
    before.prefill(tokens)
    name = next(iter(executor._tensors))
    executor.update({name: np.zeros(executor._tensors[name].shape, np.float32) + 0.01})
    prefixes.forget()
    old.remember()
    assert prefixes.statistics.sequences == 0
    before.reset()
    before.prefill(tokens)
    before.remember()
    fresh = session_of(executor, prefixes)
    np.testing.assert_array_equal(fresh.prefill(tokens), Session(executor).prefill(tokens))
    assert fresh.reused_tokens == 299


def test_what_a_session_loaded_is_for_itself_alone(executor, tmp_path: Path):
    """Other kernels may have computed it: the same within rounding, not the same bits."""
    prefixes, session = PrefixCache(executor, MUCH), Session(executor)
    session.prefill(tokens_of(300))
    session.save(tmp_path / "s.kv")
    loaded = session_of(executor, prefixes)
    loaded.load(tmp_path / "s.kv")
    loaded.remember()
    assert prefixes.statistics.sequences == 0


def test_nobody_waits_for_a_file_that_is_written_to_make_room(executor, tmp_path: Path, monkeypatch):
    """With a thread for that: sequences are put and found meanwhile, and room is made at last."""
    held = Held(write_cache)
    monkeypatch.setattr("edge.engine.prefix_files.write_cache", held)
    prefixes = PrefixCache(executor, one_sequence(executor), tmp_path)
    saver = Saver(prefixes)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE, 1))
    assert held.entered.wait(60)
    for seed in (2, 3):
        keep(executor, prefixes, tokens_of(LEAST_IN_FILE, seed))
        assert prefixes.find(tokens_of(LEAST_IN_FILE, seed), more_than=0) is not None
    assert len(list(tmp_path.glob("*.kv"))) == 0
    held.let_go.set()
    assert saver.close(60)
    prefixes.make_room()
    assert prefixes.statistics.in_files == 3 and executor.cache_bytes == 0


def test_nobody_waits_for_a_file_that_another_one_reads(executor, tmp_path: Path, monkeypatch):
    first, second = tokens_of(LEAST_IN_FILE, 1), tokens_of(LEAST_IN_FILE, 2)
    stored = PrefixCache(executor, MUCH, tmp_path)
    keep(executor, stored, first)
    stored.close()
    held = Held(reading_cache)
    monkeypatch.setattr("edge.engine.prefix_files.reading_cache", held)
    prefixes = PrefixCache(executor, MUCH, tmp_path)
    found: list[Any] = []
    reading = Thread(target=lambda: found.append(prefixes.find(first, more_than=0)), daemon=True)
    reading.start()
    assert held.entered.wait(60)
    keep(executor, prefixes, second)
    assert prefixes.find(second, more_than=0) is not None
    assert prefixes.statistics.in_files == 1 and not found
    held.let_go.set()
    reading.join(60)
    assert found[0][1] == len(first)


def test_a_fetch_keeps_what_it_has_read_in_memory(executor, tmp_path: Path):
    """Whatever the limit is, until it is released; unless memory is needed for something else."""
    tokens = tokens_of(LEAST_IN_FILE)
    prefixes = PrefixCache(executor, 0, tmp_path)
    keep(executor, prefixes, tokens)
    assert executor.cache_bytes == 0 and prefixes.fetch(tokens_of(100, 9), lambda: None) is None

    def fetched() -> Any:
        over = Event()
        fetch = prefixes.fetch(tokens, over.set)
        assert fetch is not None and (fetch.is_over or over.wait(60)) and fetch.is_over
        return fetch

    first, second = fetched(), fetched()
    prefixes.make_room()
    first.release()
    assert second.is_there and executor.cache_bytes > 0
    second.release()
    assert executor.cache_bytes == 0
    third = fetched()
    assert third.is_there
    prefixes.leave_memory()
    assert not third.is_there and executor.cache_bytes == 0
    third.release()
    (path,) = tmp_path.glob("*.kv")
    path.write_bytes(path.read_bytes()[:-7])
    assert not fetched().is_there and prefixes.statistics.sequences == 0


def test_what_a_slow_disk_can_not_take_is_not_written(executor, tmp_path: Path, monkeypatch):
    """Memory has a limit also while a file is written."""
    held = Held(write_cache)
    monkeypatch.setattr("edge.engine.prefix_files.write_cache", held)
    size = one_sequence(executor)
    monkeypatch.setattr("edge.engine.prefix_cache._BEYOND", 10 * size)
    prefixes = PrefixCache(executor, size, tmp_path)
    saver = Saver(prefixes)
    for seed in range(8):
        keep(executor, prefixes, tokens_of(LEAST_IN_FILE, seed))
        assert executor.cache_bytes <= 12 * size + 5 * size  # and the one that is being written
    assert 1 < prefixes.statistics.sequences < 8
    held.let_go.set()
    assert saver.close(60)


def test_a_file_that_can_not_be_written_to_its_end_holds_up_no_end(executor, tmp_path: Path, monkeypatch):
    held = Held(write_cache)
    monkeypatch.setattr("edge.engine.prefix_files.write_cache", held)
    prefixes = PrefixCache(executor, MUCH, tmp_path)
    saver = Saver(prefixes)
    keep(executor, prefixes, tokens_of(LEAST_IN_FILE))
    saver.tell()
    assert held.entered.wait(60)
    assert not saver.close(0)
    prefixes.close()  # waits for nothing, and does not try it again
    held.let_go.set()
    assert saver.close(60)
