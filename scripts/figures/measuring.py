"""Runs benchmarks on an idle machine and keeps their documents, with machine, command, date and version."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.executors.native.library import cpu_tiers
from edge.formats.atomic import write_file
from edge.measure.profile import machine
from edge.system.units import format_bytes

from .benchmarks import BENCHMARKS
from .declaration import Benchmark

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "docs" / "figures"
BUILD = ROOT / "build" / "figures"
_TEXT = Path(os.environ.get("EDGE_SHARED_DATA") or ROOT.parent / "shared" / "data")
_CODE = (
    *(
        "apps",
        "edge",
        "export",
        "kernels",
        "model",
        "runs",
        "scripts",
        "tests/fuzz",
        "tests/torture",
        "train",
    ),
)
_LOOK = 3.0  # seconds during which the machine is watched before a benchmark


def document_of(name: str, kind: str | None = None) -> Path:
    """Where the document of a benchmark lies; kind: of machine, by default this one's."""
    if not BENCHMARKS[name].per_machine:
        return DOCUMENTS / f"{name}.json"
    return DOCUMENTS / (kind or machine_kind(machine_facts())) / f"{name}.json"


def kinds_of(names: Iterable[str]) -> list[str]:
    """The kinds of machines that have a document of one of these benchmarks, in the order of the tables."""
    found = {path.parent.name for name in names for path in DOCUMENTS.glob(f"*/{name}.json")}
    return sorted(found)


def shown(command: str) -> str:
    """A command as the pages print it: without the folders of this checkout."""
    return command.replace("TEXT/", "").replace("BUILD/", "")


def missing(benchmark: Benchmark) -> str | None:
    """A sentence about something that the benchmark needs and this machine lacks."""
    for need in benchmark.needs:
        if sentence := need():
            return sentence
    commands = (benchmark.command, *(command for command, _ in benchmark.prepare))
    for word in (word for command in commands for word in _words(command)):
        if word.startswith(f"{_TEXT}/") and not Path(word).exists():
            return f"{Path(word).name} is not in ../shared/data: put it there, or set EDGE_SHARED_DATA."
    return None


def is_current(name: str) -> bool:
    """Whether there is a document of this version of the code, taken on an idle machine."""
    if not document_of(name).exists():
        return False
    kept = json.loads(document_of(name).read_text(encoding="utf-8"))
    return kept["version"] == version() and not kept["remarks"] and not kept["version"].endswith("dirty")


def measure(name: str, *, force: bool = False) -> str | None:
    """Run a benchmark and keep its document at once; a sentence where it was left out instead.

    force: also on a busy machine, which the document then says.
    """
    benchmark = BENCHMARKS[name]
    if sentence := missing(benchmark):
        return sentence
    if benchmark.timed and not force:
        watch = machine.Watch()
        time.sleep(_LOOK)
        share = watch.result(0.0).other_cpu_share
        if machine.noise_remarks(None, share, machine.core_count()):
            return (
                f"other programs use {share:.0%} of the processors, and times need an idle machine; with "
                "FORCE=1 they are measured all the same, and the table says so."
            )
    try:
        for command, made in benchmark.prepare:
            if not (BUILD / made).exists():
                _run(command)
        code, watch, began = version(), machine.Watch(), time.monotonic()
        _forget_other_code(benchmark, code)
        watch.start(_own_seconds())
        document = benchmark.kept(_document(benchmark.command))
    except _Failed as error:
        return str(error)
    found = watch.result(_own_seconds())
    remarks = machine.noise_remarks(None, found.other_cpu_share, machine.core_count())
    kept: dict[str, Any] = {
        "command": shown(benchmark.command),
        "created": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine_facts(),
        "version": code,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "other_cpu_share": found.other_cpu_share,
        "remarks": list(remarks) if benchmark.timed else [],
        "document": document,
    }
    path = document_of(name)
    path.parent.mkdir(exist_ok=True)
    write_file(path, (json.dumps(kept, indent=1) + "\n").encode())
    _forget(benchmark)
    return None


def _forget_other_code(benchmark: Benchmark, code: str) -> None:
    """Go on only from what the same version of the code has made: the document names one."""
    if benchmark.state:
        BUILD.mkdir(parents=True, exist_ok=True)
        made_by = BUILD / f"{benchmark.state}.version"
        if not made_by.exists() or made_by.read_text(encoding="utf-8") != code:
            _forget(benchmark)
        made_by.write_text(code, encoding="utf-8")


def _forget(benchmark: Benchmark) -> None:
    """Remove what a run of the benchmark would go on from."""
    if not benchmark.state:
        return
    (BUILD / f"{benchmark.state}.version").unlink(missing_ok=True)
    state = BUILD / benchmark.state
    if state.is_dir():
        shutil.rmtree(state)
    else:
        state.unlink(missing_ok=True)


def machine_facts() -> dict[str, Any]:
    """This machine, in the words of the line below a table."""
    told: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    kind = ", ".join(
        f"{key.removeprefix('cpu ')} {told[key]}" for key in ("cpu family", "model") if key in told
    )
    return {
        "cpu": machine.cpu_name(),
        "kind": kind,
        "tier": cpu_tiers()[0],
        "cores": machine.core_count(),
        "memory_bytes": machine.memory_bytes(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }


def machine_label(facts: dict[str, Any]) -> str:
    """Maker and tier, for instance `AMD avx512vnni`: what documents of several machines are kept apart by."""
    return f"{facts['cpu'].split()[0].removesuffix('(R)')} {facts['tier']}"


def machine_kind(facts: dict[str, Any]) -> str:
    """The folder of a machine's documents, for instance `amd-avx512vnni`."""
    return re.sub(r"[^a-z0-9]+", "-", machine_label(facts).lower())


def machine_line(facts: dict[str, Any]) -> str:
    """For instance `AMD EPYC (family 25, model 17; avx512vnni), 2 cores, 25.3 GB, Linux 6.18`."""
    memory = f", {format_bytes(facts['memory_bytes'])}" if facts["memory_bytes"] else ""
    inside = "; ".join(text for text in (facts["kind"], facts["tier"]) if text)
    return f"{facts['cpu']} ({inside}), {facts['cores']} cores{memory}, {facts['system']}"


def version() -> str:
    """The last commit of the code, `-dirty` if it was changed since; of an archive, the program's version."""
    try:
        commit = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *_CODE)
        changed = _git("status", "--porcelain", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError):
        import edge

        return edge.__version__
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _words(command: str) -> list[str]:
    words = [
        word.replace("TEXT/", f"{_TEXT}/").replace("BUILD/", f"{BUILD}/") for word in shlex.split(command)
    ]
    programs = {"python": [sys.executable], "edge": [sys.executable, "-m", "edge"]}
    return [*programs.get(words[0], words[:1]), *words[1:]]


class _Failed(Exception):
    """A sentence about a command that did not end well."""


def _run(command: str) -> str:
    """Standard output of a command in the root of the repository."""
    BUILD.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(_words(command), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout:
        raise _Failed(
            f"`{shown(command)}` failed with exit code {done.returncode}.\n{done.stdout[-2000:]}".rstrip()
        )
    return done.stdout


def _document(command: str) -> dict[str, Any]:
    """The document that a command prints as its last line."""
    last = _run(command).splitlines()[-1]
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _Failed(f"`{shown(command)}` ended with a line that is no document: {last[:200]}")
    return found


def _own_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)
