"""The thread pool: every index exactly once, nothing lost between regions, threads that park wake up."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

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
        assert len(run(ThreadPool(3), 10, 1)) == 10


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_pool_ends_its_threads():
    gc.collect()  # pools of other tests
    time.sleep(0.1)
    before = threads_of_this_process()
    pools = [ThreadPool(3) for _ in range(4)]
    for pool in pools:
        run(pool, 10, 1)
    assert threads_of_this_process() == before + 4 * 2
    del pools, pool
    gc.collect()
    deadline = time.monotonic() + 30
    while threads_of_this_process() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # the system takes a moment to forget a thread that was joined
    assert threads_of_this_process() <= before


def test_one_region_at_a_time_runs_on_the_threads():
    """A region that begins while another is under way is done by its caller alone, and completely."""
    pool, inside, go_on = ThreadPool(2), threading.Event(), threading.Event()

    def hold(begin, end):
        inside.set()
        assert go_on.wait(timeout=60)

    first = threading.Thread(target=lambda: run(pool, 2, 1, hold))
    first.start()
    assert inside.wait(timeout=60)
    pieces = run(pool, 7, 2)
    go_on.set()
    first.join()
    assert pieces == [(0, 2, 0), (2, 4, 0), (4, 6, 0), (6, 7, 0)]


FORKED = """
import os, sys, threading
sys.path.insert(0, {root!r})
from edge.executors.native.pool import ThreadPool
from tests.kernels.test_pool import run

pool = ThreadPool(3)
assert len(run(pool, 10, 1)) == 10

def child():
    # Both pieces at once: the child has threads of its own.
    barrier = threading.Barrier(3)
    pieces = run(pool, 3, 1, lambda begin, end: barrier.wait(timeout=60))
    assert sorted(piece[:2] for piece in pieces) == [(0, 1), (1, 2), (2, 3)], pieces
    assert len(run(pool, 100, 3)) == 34

for depth in range(2):  # a child, and a child of its own
    process = os.fork()
    if process:
        break
    child()
assert len(run(pool, 10, 1)) == 10
if process:
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
print("ok", flush=True)
del pool
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_threads_of_its_own():
    """Its parent's are not there: waiting for them would have no end."""
    program = FORKED.format(root=str(Path(__file__).resolve().parents[2]))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ok\n" * 3


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_thread_counts(threads):
    handle = ctypes.c_void_p()
    with pytest.raises(NativeError, match="number of threads"):
        native.check(native.library().edge_pool_create(threads, ctypes.byref(handle)))


def test_default_threads():
    assert native.default_threads() >= 1
    assert ThreadPool().threads == native.default_threads()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_default_threads_are_within_the_affinity_mask():
    program = (
        "import os\n"
        "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
        "from edge.executors.native import library\n"
        "print(library.default_threads())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "1\n", result.stderr


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
