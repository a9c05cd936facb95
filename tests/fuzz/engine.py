"""The fuzzer: changes accepted files, keeps what reaches new lines; anything but an EdgeError is a finding.

It belongs into a process of its own, whose memory is limited. The state is in a file, so that a run of hours
can be stopped and continued.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from edge.errors import EdgeError
from tests.fuzz.readers import Reader

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus" / "python"
MEMORY = 2 << 30
SECONDS = 10.0
_TRACED = 4  # one of so many executions is watched line by line


class Hang(BaseException):
    """An execution took too long."""


@dataclass
class State:
    """Of a run that may be continued. lines: "module:line" reached; kept: inputs in hex that reached new."""

    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


class Fuzzer:
    """Runs one reader in a folder of its own. folder: for its state and findings, None to keep nothing."""

    def __init__(self, reader: Reader, folder: Path | None, seed: int = 0) -> None:
        self.reader, self._folder, self._seed = reader, folder, seed
        self.state = State()
        if folder is not None and (folder / "state.json").exists():
            self.state = State(**json.loads((folder / "state.json").read_bytes()))
        self.files = dict(reader.files())
        self._lines = set(self.state.lines)
        self._pool: dict[str, list[bytes]] = {name: [self.files[name]] for name in reader.changed}
        for name, data in [*corpus(reader), *((name, bytes.fromhex(text)) for name, text in self.state.kept)]:
            self._pool[name].append(data)
        memory = Path("/dev/shm")
        self._place = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.work = Path(self._place.name)
        for name, data in self.files.items():
            self._write(name, data)
            if name in reader.changed:
                self._write(name, reader.finish(data))

    def accepts(self, changes: dict[str, bytes]) -> bool:
        """Whether the reader takes the files with these in place; EdgeError is no, all else a finding."""
        for name, data in changes.items():
            self._write(name, self.reader.finish(data))
        try:
            self.reader.read(self.work)
            return True
        except EdgeError as error:
            str(error).encode()
            return False
        finally:
            for name in changes:
                self._write(name, self.reader.finish(self.files[name]))

    def run(
        self, executions: int, seconds: float = float("inf"), heartbeat: Callable[[], object] = lambda: None
    ) -> None:
        """Until so many executions in all, or for so many seconds; findings are in `state.findings`.

        heartbeat: called after every 64 executions.
        """
        warnings.simplefilter("ignore")  # what a reader ignores on purpose, it says
        started, before = time.monotonic(), self.state.seconds
        while self.state.executions < executions:
            if self.state.executions % 64 == 0:
                heartbeat()
                self.state.seconds = before + time.monotonic() - started
                if time.monotonic() - started > seconds:
                    break
            if self.state.executions % 4096 == 0:
                self.save()
            self._step()
        self.state.seconds = before + time.monotonic() - started
        self.save()

    def save(self) -> None:
        """Write the state."""
        self.state.lines = sorted(self._lines)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / "state.new"
            temporary.write_text(json.dumps(asdict(self.state)))
            temporary.replace(self._folder / "state.json")

    def coverage(self) -> tuple[int, int]:
        """Lines reached, and lines in all, of the functions in the reader's modules."""
        wanted = {f"{module}:{line}" for module in self.reader.modules for line in lines_of(ROOT / module)}
        return len(wanted & self._lines), len(wanted)

    def _step(self) -> None:
        number = self.state.executions
        self.state.executions += 1
        chance = random.Random(f"{self._seed} {self.reader.name} {number}")
        name = chance.choice(self.reader.changed)
        pool = self._pool[name]
        # Half of them from the accepted file: most of the others are refused for what they have already.
        data = self.reader.mutate(pool[0] if chance.random() < 0.5 else chance.choice(pool), chance, pool)
        reached: set[str] = set()
        try:
            with (
                alarm(SECONDS),
                warnings.catch_warnings(action="ignore"),
                traced(self.reader.modules, reached if number % _TRACED == 0 else None),
            ):
                self.state.accepted += self.accepts({name: data})
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            self._found(name, data, error)
        if not reached <= self._lines:
            self._lines |= reached
            pool.append(data)
            if len(data) < 1 << 16:
                self.state.kept.append((name, data.hex()))

    def _found(self, name: str, data: bytes, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error!s:.200}"
        if any(known.partition(": ")[0] == where.partition(": ")[0] for known in self.state.findings):
            return
        self.state.findings.append(where)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(data).hexdigest()[:12]
            (self._folder / f"finding-{digest}-{name}").write_bytes(data)
            trace = "".join(traceback.format_exception(error))
            (self._folder / f"finding-{digest}.txt").write_text(trace, errors="backslashreplace")

    def _write(self, name: str, data: bytes) -> None:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def corpus(reader: Reader) -> Iterator[tuple[str, bytes]]:
    """(name of the file, contents) of every committed input of a reader."""
    for path in sorted((CORPUS / reader.name).glob("*")):
        yield path.name.partition("-")[2], path.read_bytes()


def limit_memory() -> None:
    """At most MEMORY more than now, for this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Hang after so many seconds."""

    def ring(*_: object) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def traced(modules: tuple[str, ...], reached: set[str] | None) -> Iterator[None]:
    """Note the lines of `modules` that run; None watches nothing."""
    if reached is None:
        yield
        return
    names = {str(ROOT / module): module for module in modules}

    def call(frame: FrameType, event: str, argument: object) -> Any:
        module = names.get(frame.f_code.co_filename)
        if module is None:
            return None

        def line(frame: FrameType, event: str, argument: object) -> Any:
            reached.add(f"{module}:{frame.f_lineno}")
            return line

        return line

    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)


def lines_of(path: Path) -> set[int]:
    """Lines inside the functions of a file; what runs on import is not the reader's."""
    found: set[int] = set()

    def walk(code: CodeType, inside: bool) -> None:
        if inside:
            found.update(
                line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno
            )
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                walk(constant, inside or bool(constant.co_flags & 0x2))  # CO_NEWLOCALS: no class body

    walk(compile(path.read_text(encoding="utf-8"), str(path), "exec"), False)
    return found
