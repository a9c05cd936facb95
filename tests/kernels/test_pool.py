"""The thread pool: every index exactly once, nothing lost between regions, threads that park wake up."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.pool import ThreadPool

_TASK = dict(native.Parallel._fields_)["run"]._argtypes_[3]


def run(pool: ThreadPool, count: int, grain: int, work=lambda begin, end: None) -> list[tuple[int, int, int]]:
    pieces: list[tuple[int, int, int]] = []

    def task(_argument, begin, end, worker):
        work(begin, end)
        pieces.append((begin, end, worker))  # list.append is atomic

    callback = _TASK(task)
    pool.parallel.run(pool.parallel.context, count, grain, callback, None)
    return sorted(pieces)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(("count", "grain"), [(1, 1), (7, 3), (100, 1), (1000, 64), (5, 100)])
def test_every_index_once(threads, count, grain):
    pool = ThreadPool(threads)
    pieces = run(pool, count, grain)
    assert [begin for begin, _, _ in pieces] == list(range(0, count, grain))
    assert all(end == min(begin + grain, count) for begin, end, _ in pieces)
    assert all(0 <= worker < threads for _, _, worker in pieces)


def test_more_pieces_than_the_counter_holds_are_grouped():
    pieces = run(ThreadPool(2), 1 << 22, 1 << 10)
    assert pieces[0][0] == 0 and pieces[-1][1] == 1 << 22
    assert all(a[1] == b[0] for a, b in pairwise(pieces))


def test_many_short_regions():
    pool = ThreadPool(4)
    for count in range(1, 400):
        assert len(run(pool, count % 7 + 1, 1)) == count % 7 + 1


def test_parked_threads_wake_up():
    pool = ThreadPool(2)
    for _ in range(5):
        time.sleep(0.01)  # far longer than threads spin
        barrier = threading.Barrier(2)
        # Both pieces must run at the same time: one thread alone would wait for ever.
        pieces = run(pool, 2, 1, lambda begin, end, both=barrier: both.wait(timeout=10))
        assert {worker for _, _, worker in pieces} == {0, 1}


def test_pools_come_and_go():
    for _ in range(50):
        run(ThreadPool(3), 10, 1)


@pytest.mark.parametrize("threads", [-1, 5000])
def test_impossible_thread_counts(threads):
    handle = ctypes.c_void_p()
    with pytest.raises(NativeError, match="number of threads"):
        native.check(native.library().edge_pool_create(threads, ctypes.byref(handle)))


def test_default_threads():
    assert native.default_threads() >= 1
    assert ThreadPool().threads == native.default_threads()


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="its shadow memory exceeds the limit")
def test_too_few_threads_in_the_system_is_an_error_and_no_abort():
    program = (
        "import resource\n"
        "from edge.errors import NativeError\n"
        "from edge.executors.native.executor import ThreadPool\n"
        "ThreadPool(2)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"  # stacks of 8 MB each
        "try:\n"
        "    ThreadPool(1000)\n"
        "except NativeError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Threads could not be started")
