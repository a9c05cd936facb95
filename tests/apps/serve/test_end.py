"""The end of a server whose threads do not end: it comes all the same, and the log says what hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

import edge
from edge.apps.serve.options import ServeOptions
from edge.apps.serve.state import Served
from edge.apps.serve.workers import Workers


@pytest.mark.parametrize("hanging", [False, True])
def test_what_hangs_is_named_and_left(tiny_folder: str, capfd: pytest.CaptureFixture[str], hanging: bool):
    begun, let_go = threading.Event(), threading.Event()
    with edge.load(tiny_folder, threads=1) as model:
        served = Served(model, ServeOptions(prefix_folder="off"))
        call = served._workers.submit(lambda: (begun.set(), hanging and let_go.wait()))
        assert begun.wait(60)  # what has not begun is cancelled, and cannot hang
        if not hanging:
            call.result(60)
        served.close(0 if hanging else 30)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    named = [what for line in lines if line["event"] == "hanging" for what in line["what"]]
    assert "requests that are read" in named if hanging else not named
    let_go.set()


def test_workers_do_what_is_asked_of_them():
    workers, order = Workers(1, "test"), []
    let_go = threading.Event()
    first = workers.submit(let_go.wait)
    calls = [workers.submit(order.append, n) for n in range(3)]
    failed = workers.submit(int, "no number")
    let_go.set()
    for each in (first, *calls):
        each.result(60)
    assert order == [0, 1, 2] and isinstance(failed.exception(60), ValueError)
    let_go.clear()
    workers.submit(let_go.wait)
    never = workers.submit(order.append, 9)
    assert not workers.close(0) and never.cancelled() and workers.submit(order.append, 9).cancelled()
    let_go.set()
    assert workers.close(60) and order == [0, 1, 2]


def test_a_process_ends_whose_workers_do_not():
    program = (
        "import threading; from edge.apps.serve.workers import Workers; "
        "begun = threading.Event(); workers = Workers(2, 'test'); "
        "workers.submit(lambda: (begun.set(), threading.Event().wait())); begun.wait(); "
        "print(workers.close(0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
