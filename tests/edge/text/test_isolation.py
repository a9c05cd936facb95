"""The process for foreign code: what ends it, what starts it anew, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.text.chat_template import ChatTemplate, TemplateLimitError, template_worker
from edge.text.isolation.worker import Worker

ECHO = (
    "{% if messages[0].content == 'loop' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)
posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks")


@pytest.fixture
def worker() -> Iterator[Worker]:
    found = template_worker()
    yield found
    found.close()


@pytest.fixture
def template(worker: Worker) -> ChatTemplate:
    return ChatTemplate(ECHO, worker=worker)


def echo(template: ChatTemplate, text: str) -> str:
    return template.render([{"content": text}])


def process_of(worker: Worker) -> Any:
    assert worker._process is not None
    return worker._process


@pytest.mark.skipif(sys.platform != "linux", reason="ld.so's variable")
def test_a_preloaded_library_is_left_out(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
    """AddressSanitizer's maps more than the limit on memory."""
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    worker.start()
    environment = Path(f"/proc/{process_of(worker).pid}/environ").read_bytes()
    assert b"LD_PRELOAD" not in environment and b"PATH=" in environment


def test_all_templates_share_one_process_while_somebody_holds_it(worker: Worker) -> None:
    assert ChatTemplate("a")._worker is worker
    assert template_worker() is worker


def test_threads_share_one_process(template: ChatTemplate, worker: Worker) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        for i in range(50):
            if echo(template, f"{name} {i}") != f"{name} {i}":
                wrong.append(name)

    first = process_of(worker)
    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert process_of(worker) is first


def test_after_a_breach_the_process_is_gone_and_the_next_rendering_works(worker: Worker) -> None:
    template = ChatTemplate(ECHO, worker=worker, time_limit=1.0)
    first = process_of(worker)
    with pytest.raises(TemplateLimitError, match="more than 1 seconds"):
        echo(template, "loop")
    assert first.returncode is not None  # waited for: no zombie, and its memory is free
    assert echo(template, "again") == "again"


def test_a_process_that_ended_while_idle_is_replaced(template: ChatTemplate, worker: Worker) -> None:
    process_of(worker).kill()
    process_of(worker).wait()
    assert echo(template, "again") == "again"


@posix
def test_a_stopped_process_is_no_hang(worker: Worker) -> None:
    template = ChatTemplate(ECHO, worker=worker, time_limit=1.0)
    os.kill(process_of(worker).pid, signal.SIGSTOP)
    with pytest.raises(TemplateLimitError, match="more than 1 seconds"):
        echo(template, "a")
    assert echo(template, "again") == "again"


@posix
def test_an_interrupt_does_not_mix_up_answers(template: ChatTemplate) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        echo(template, "loop")
    assert echo(template, "again") == "again"


@posix
def test_the_process_is_not_in_the_terminals_group(template: ChatTemplate, worker: Worker) -> None:
    assert os.getpgid(process_of(worker).pid) != os.getpgid(0)


def test_close_and_garbage_end_the_process(worker: Worker) -> None:
    template = ChatTemplate(ECHO, worker=worker)
    first = process_of(worker)
    template.close()
    assert first.returncode is not None
    assert echo(template, "again") == "again"
    own = Worker("edge.text.isolation.templates", packages=("jinja2", "markupsafe"))
    own.start()
    second = process_of(own)
    del own
    gc.collect()
    assert second.returncode is not None


@posix
def test_close_ends_the_call_that_is_under_way(template: ChatTemplate, worker: Worker) -> None:
    template.render([{"role": "user", "content": "a"}])
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGSTOP)  # it would take until the limit of the call
    failures: list[Exception] = []

    def render() -> None:
        try:
            template.render([{"role": "user", "content": "b"}])
        except Exception as error:
            failures.append(error)

    rendering = threading.Thread(target=render)
    rendering.start()
    while not worker._lock.locked():
        time.sleep(0.01)
    closing = threading.Thread(target=worker.close, daemon=True)
    closing.start()
    closing.join(3)
    assert not closing.is_alive(), "it waits for the call"
    rendering.join(60)
    assert len(failures) == 1 and worker._process is None


@posix
def test_a_forked_child_gets_a_process_of_its_own(template: ChatTemplate, worker: Worker) -> None:
    first = process_of(worker)
    worker._lock.acquire()  # as if another thread were asking at this moment
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # instead of a hang
        good = echo(template, "child") == "child" and process_of(worker).pid != first.pid
        worker.close()
        os._exit(0 if good else 1)
    worker._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert echo(template, "parent") == "parent"
    assert process_of(worker) is first


def program(text: str) -> str:
    return (
        "import sys\n"
        "from edge.text.chat_template import ChatTemplate\n"
        f"template = ChatTemplate({ECHO!r}, time_limit=1.0)\n"
        "print(template._worker._process.pid, flush=True)\n" + text
    )


def ended(pid: int, seconds: float) -> bool:
    """Whether a process that is not our child ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":  # dead; whoever adopted it has not looked yet
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "import os; os._exit(0)", "1 / 0"])
def test_the_process_ends_with_the_program(end: str) -> None:
    done = subprocess.run([sys.executable, "-c", program(end)], capture_output=True, text=True, timeout=120)
    assert ended(int(done.stdout), 60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("text", ["idle", "loop"])
def test_the_process_ends_when_the_program_is_killed(text: str) -> None:
    wait = "import time; time.sleep(999)" if text == "idle" else "template.render([{'content': 'loop'}])"
    with subprocess.Popen([sys.executable, "-c", program(wait)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    assert ended(pid, 60)


def test_nothing_of_the_users_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Worker
) -> None:
    for name in ("jinja2", "json", "markupsafe", "sitecustomize", "resource", "datetime"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert echo(ChatTemplate(ECHO, worker=worker), "fine") == "fine"
    assert not (tmp_path / "imported").exists()
