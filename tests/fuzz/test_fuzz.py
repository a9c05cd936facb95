"""A cut of `make fuzz`: every reader takes its seeds, survives the corpus, and some hundred changed files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import EdgeError
from tests.fuzz.engine import CORPUS, Fuzzer, corpus
from tests.fuzz.readers import READERS

SECONDS = float(os.environ.get("EDGE_FUZZ_SECONDS", "0.6"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", READERS)
def test_the_seed_is_accepted_and_the_corpus_is_survived(name: str):
    fuzzer = Fuzzer(READERS[name], None)
    assert fuzzer.accepts({})
    for file, data in corpus(READERS[name]):
        fuzzer.accepts({file: data})  # raises what is not an EdgeError
    assert fuzzer.accepts({})


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_no_reader_fails_on_changed_files(tmp_path: Path):
    """One process for all readers, so that the limit of its memory stays in it."""
    code = f"""
import sys
from tests.fuzz.engine import Fuzzer, limit_memory
from tests.fuzz.readers import READERS
limit_memory()
for name, reader in READERS.items():
    fuzzer = Fuzzer(reader, None)
    fuzzer.run(10**6, {SECONDS})
    assert fuzzer.state.executions > 1, name
    print(name, fuzzer.state.executions, *fuzzer.state.findings, sep="; ")
    assert not fuzzer.state.findings
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_fuzzer_finds_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A wrong exception and an endless loop are findings, an EdgeError is none; a run can be continued."""
    stamps = READERS["stamps"]

    def fragile(folder: Path) -> None:
        size = (folder / "s.json").stat().st_size
        while size % 3 == 0:
            pass
        raise IndexError("odd") if size % 2 else EdgeError("even")

    monkeypatch.setattr("tests.fuzz.engine.SECONDS", 0.02)
    broken = replace(stamps, read=fragile)
    fuzzer = Fuzzer(broken, tmp_path / "state")
    fuzzer.run(60)
    kinds = {line.partition(" ")[0] for line in fuzzer.state.findings}
    assert kinds == {"IndexError", "Hang"} and fuzzer.state.accepted == 0
    again = Fuzzer(broken, tmp_path / "state")
    assert again.state.executions == 60 and again.state.findings == fuzzer.state.findings


def test_the_corpus_belongs_to_readers():
    for folder in CORPUS.iterdir():
        for path in folder.iterdir():
            assert path.name.partition("-")[2] in READERS[folder.name].changed
