"""Starts the process that runs foreign code, asks it, and ends it when it takes too much.

A process and not a thread, because only a process can be stopped in the middle of a regular expression, and
only its memory can be limited. Started by `subprocess` and never forked: a fork of a program with threads may
hang, and multiprocessing would import the user's main module again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import errors
from edge.errors import EdgeError
from edge.text.isolation.server import OUT_OF_MEMORY

if TYPE_CHECKING:
    from subprocess import Popen

Setup = Callable[[], Mapping[str, Any]]

_START = (
    "import sys; sys.path += sys.argv[2:]; from edge.text.isolation.server import serve; serve(sys.argv[1])"
)
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.05
_MAX_REPLY = 1 << 25
_REPLY_PER_CHARACTER = 16  # of the request: ids are numbers with a comma, and each character may be a token
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class WorkerFailure(Exception):
    """The foreign code failed or went past a limit; the message says how, without a full stop."""


class Worker:
    """A process that serves one of the programs beside this module. May be used from several threads.

    It starts with the first call (or `start`), and anew after each breach of a limit, after `close` and in a
    forked child. It ends with this object, with the program, and when the program is killed. It is no part
    of the terminal's foreground group, so Ctrl-C does not reach it.
    """

    def __init__(self, program: str, packages: tuple[str, ...], setup: Setup | None = None) -> None:
        """program: a module with a class `Program`. packages: what it imports, beside edge and Python's own.
        setup: arguments for its method `open`, which every new process calls first.
        """
        self._facts: Any = None
        self._program = program
        self._packages = packages
        self._setup = setup
        self._process: Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()
        self._end: weakref.finalize | None = None
        _workers.add(self)

    def start(self) -> None:
        """Let the process begin to start, without waiting for it."""
        with self._lock:
            self._started()

    def open(self) -> Any:
        """Wait for the process to be ready; what the program's `open` returned. Raises as `call`."""
        with self._lock, self._ended_by_errors():
            self._opened()
        return self._facts

    def call(self, method: str, seconds: float, **arguments: Any) -> Any:
        """The result of a method of the program.

        arguments, result: JSON values. Raises the program's EdgeError; WorkerFailure for any other error of
        it, or if it takes more than so many seconds, too much memory, or dies.
        """
        with self._lock, self._ended_by_errors():
            self._opened()
            return self._ask(method, seconds, arguments)

    def close(self) -> None:
        """End the process now, and with it the call that it works on; a later call starts another."""
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if (process := self._process) is not None:
                process.kill()
        try:
            self._stop()
        finally:
            self._lock.release()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """After an interrupt, too: the answer on its way would be taken for the next one."""
        try:
            yield
        except BaseException as error:
            if not (self._ready and isinstance(error, EdgeError)):
                self._stop()
            raise

    def _opened(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._stop()  # something ended it while it was idle
        if not self._ready:
            self._exchange(b"", _START_SECONDS)
            if self._setup is not None:
                self._facts = self._ask("open", _START_SECONDS, self._setup())
            self._ready = True

    def _started(self) -> Popen[bytes]:
        if self._process is None:
            self._process = _start(self._program, self._packages)
            self._end = weakref.finalize(self, _end, self._process, os.getpid())
        return self._process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._abandon()

    def _abandon(self) -> None:
        if self._end is not None:
            self._end.detach()
        self._process, self._end, self._ready = None, None, False

    def _ask(self, method: str, seconds: float, arguments: Mapping[str, Any]) -> Any:
        request = {"method": method, "seconds": seconds, "arguments": arguments}
        reply = self._exchange(json.dumps(request).encode() + b"\n", seconds)
        if "error" in reply:
            raise getattr(errors, reply["error"], EdgeError)(reply["message"])
        if "failure" in reply:
            raise WorkerFailure(reply["failure"])
        return reply["value"]

    def _exchange(self, request: bytes, seconds: float) -> Any:
        process = self._started()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        most = _MAX_REPLY + _REPLY_PER_CHARACTER * len(request)
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.readline(most)
        except OSError:  # it died before it had read everything
            reply = b""
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():
            raise WorkerFailure(f"it takes more than {seconds:g} seconds")
        if not reply.endswith(b"\n"):
            raise WorkerFailure("its result is too large" if reply else _death(process))
        return json.loads(reply)


def _start(program: str, packages: tuple[str, ...]) -> Popen[bytes]:
    import subprocess

    # Isolated and without `site`: it imports nothing of the user's folder or environment, and starts fast.
    command = [_interpreter(), "-I", "-S", "-c", _START, program]
    command += dict.fromkeys(_folder(name) for name in ("edge", *packages))
    # A library that is put before all others, such as AddressSanitizer's, may need more than the limit.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            **own_group,
        )
    except OSError as error:
        raise EdgeError(
            f"The process for chat templates and tokenizers can't be started ({error.strerror or error}); "
            "end other programs, or raise the limit on processes."
        ) from None


def _interpreter() -> str:
    """Python itself: where it is embedded, `sys.executable` may be the program around it."""
    import sysconfig

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(sysconfig.get_config_var("BINDIR") or sys.exec_prefix)
    for path in (Path(sys.executable or ""), folder / f"python{version}", folder / "python.exe"):
        if path.stem.lower().startswith(("python", "pypy")) and path.is_file():
            return str(path)
    raise EdgeError(
        "Chat templates and tokenizers run in a Python process of their own, and no interpreter was found "
        f"for it (sys.executable is '{sys.executable}'); install Python {version} beside this program."
    )


def _folder(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EdgeError(f"The package '{package}' is not installed; install minicpm-edge again.")
    return str(Path(spec.origin).resolve().parents[1 + package.count(".")])


def _death(process: Popen[bytes]) -> str:
    status = process.wait()
    if status == OUT_OF_MEMORY:
        return "it needs too much memory"
    return f"it crashed or ran out of memory: its process ended with status {status}"


def _end(process: Popen[bytes], owner: int) -> None:
    """Kill the process and wait for it, so that no zombie stays; not in a forked child, whose it isn't."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written can't be any more
                    pipe.close()


def _forget_in_child() -> None:
    """A forked child must not talk into the pipes of its parent's processes."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for worker in list(_workers):
        if worker._process is not None:
            for pipe in (worker._process.stdin, worker._process.stdout):
                assert pipe is not None
                os.dup2(nowhere, pipe.fileno())
            worker._process.returncode = 0  # not the child's to wait for
        worker._lock = threading.Lock()
        worker._abandon()
    os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
