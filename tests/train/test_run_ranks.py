"""Runs of two processes: they learn what one does, stop together, and tell things once."""

from __future__ import annotations

import re
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import (
    EOS,
    Program,
    facts,
    losses,
    ranks,
    run,
    torchrun,
    torchrun_command,
    until,
    weights,
    write_config,
    write_documents,
)

ALL: dict[str, Any] = {
    "loss": {"multi_token": 0.3, "z": 1e-3},
    "optimizer": {"kind": "muon"},
    "quantization": {"scheme": "ternary-row"},
}
PLAIN: dict[str, Any] = {}


def ended(programs: list[Program]) -> list[int]:
    return [program.wait() for program in programs]


def learned(config: Path, out: Path, said: Path) -> list[Program]:
    """Two processes that learn to the end.

    One of them has died in PyTorch or gloo ("double free or corruption", once in hundreds of runs): then
    both are started again, as `torchrun --max-restarts` does, and go on from their checkpoint (docs/log.md).
    """
    two = ranks(2, "run", config, "--out", out, out=said)
    if min(codes := ended(two)) < 0:
        warnings.warn(f"a process died of signal {-min(codes)}: {two[0].complained}", stacklevel=2)
        two = ranks(2, "run", config, "--out", out, out=said)
        codes = ended(two)
    assert codes == [0, 0], two[0].complained + two[1].complained
    return two


def assert_close_runs(one: Path, two: Path, steps: int = 6) -> None:
    torch.testing.assert_close(
        torch.tensor(losses(two)[-steps:]), torch.tensor(losses(one)[-steps:]), atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize("sections", [pytest.param(PLAIN, marks=pytest.mark.slow), ALL], ids=["plain", "all"])
def test_two_processes_learn_as_one_and_go_on_as_one(tmp_path: Path, sections: dict[str, Any]):
    """The first half of the steps on two, the second on one; and the other way round."""
    half = {**sections, "start": {}, "schedule": {"steps": 3, "kind": "constant", "warm_up": 2}}
    whole = {**sections, "schedule": {"steps": 6, "kind": "constant", "warm_up": 2}}
    run(tmp_path, "one", **whole)
    config = write_config(tmp_path, **half)
    two = learned(config, tmp_path / "two", tmp_path / "said")
    assert two[0].printed.count("Trained") == 1 and not two[1].printed and not two[1].complained
    if not sections:  # rounded weights jump
        run(tmp_path, "half", **half)
        for name, each in weights(tmp_path / "half").items():
            torch.testing.assert_close(weights(tmp_path / "two")[name], each, atol=1e-3, rtol=1e-3)
    branch = {**whole, "start": {"path": str(tmp_path / "two"), "what": "everything"}}
    run(tmp_path, "back", **branch)
    assert_close_runs(tmp_path / "one", tmp_path / "back", 3)
    run(tmp_path, "first", **half)
    config = write_config(
        tmp_path, **{**whole, "start": {"path": str(tmp_path / "first"), "what": "everything"}}
    )
    learned(config, tmp_path / "forth", tmp_path / "said")
    assert_close_runs(tmp_path / "one", tmp_path / "forth", 3)
    assert (tmp_path / "forth" / "multi_token.safetensors").exists() == bool(sections)
    if sections:
        for name, each in weights(tmp_path / "forth").items():
            if ".layers." in name and each.dim() == 2:  # saved as they are rounded
                assert all(len(row.abs().unique()) <= 2 for row in each), name


def test_one_signal_stops_all(tmp_path: Path):
    config, out = write_config(tmp_path, schedule={"steps": 500}), tmp_path / "run"
    two = ranks(2, "run", config, "--out", out, out=tmp_path / "said")
    until(out / "log.jsonl", 3, two[0])
    two[1].signal(signal.SIGTERM)  # and the first process has none
    assert ended(two) == [128 + signal.SIGTERM] * 2, two[0].complained + two[1].complained
    assert re.search(r"\nStopped after step \d+; the same command", two[0].complained)
    assert not two[1].complained
    step = len(losses(out))
    assert (out / "checkpoints" / f"step-{step:08}").is_dir() and not (out / "model").exists()


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "folder": ({}, "Another run is writing to"),
    "rows": ({"data": {"rows": 3}}, "data.rows is 3, which 2 processes can't share; take a multiple."),
    "held out": ({"evaluation": {"rows": 5}}, "evaluation.rows is 5, which 2 processes can't share"),
    "buckets": (
        {"data": {"buckets": [16, 48]}},
        "data.divisor is 1, which 2 processes can't share; take a multiple.",
    ),
    "texts": ({"data": {"sources": {"t": "/nowhere"}}}, "'/nowhere' is no finished folder"),
    "option": ({"data": {"row": 3}}, "There is no option 'data.row'; is it 'data.rows'?"),
    "start": ({"start": {"path": "/nowhere"}}, "'/nowhere' has no checkpoints"),
    "sparse": (
        {"attention": {"kind": "sparse"}},
        "attention.kind=sparse needs the constants of model.sparse",
    ),
}


QUICK = ("folder", "rows", "option", "start")


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in FAILURES.items()
    ],
)
def test_a_failure_ends_all_with_one_sentence(tmp_path: Path, sections: dict[str, Any], sentence: str):
    config, out = write_config(tmp_path, **sections), tmp_path / "run"
    if not sections:
        config = write_config(tmp_path, schedule={"steps": 5000})
        other = Program("run", config, "--out", out, out=tmp_path / "other")
        until(out / "log.jsonl", 1, other)
    two = ranks(2, "run", config, "--out", out, out=tmp_path / "said")
    assert ended(two) == [1, 1]
    assert two[0].complained.startswith("Error: ") and sentence in two[0].complained
    assert two[0].complained.count("\n") == 1 and not two[1].complained, two[1].complained
    if not sections:
        other.signal(signal.SIGKILL)
        other.wait()


def test_losses_that_are_no_numbers_stop_both_once(tmp_path: Path):
    config = write_config(tmp_path, optimizer={"learning_rate": 1e30, "clip": 0.0})
    two = ranks(2, "run", config, "--out", tmp_path / "run", out=tmp_path / "said")
    assert ended(two) == [1, 1]
    assert "is no number; its rows are in" in two[0].complained and not two[1].complained
    assert len(list((tmp_path / "run").glob("no-number-*-[01].npz"))) == 2


@pytest.mark.slow
def test_buckets_are_shared(tmp_path: Path):
    sections = {"data": {"buckets": [16, 48], "divisor": 2}, "evaluation": {"sources": {}}}
    run(tmp_path, "one", **sections)
    config = write_config(tmp_path, **sections)
    learned(config, tmp_path / "two", tmp_path / "said")
    assert_close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_torchrun_starts_and_stops_them(tmp_path: Path):
    config = write_config(tmp_path)
    done = torchrun(2, "run", config, "--out", tmp_path / "two")
    assert done.returncode == 0 and done.stdout.count("Trained") == 1, done.stderr
    run(tmp_path, "one")
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    config, out = write_config(tmp_path, schedule={"steps": 2000}), tmp_path / "stopped"
    under_way = subprocess.Popen(torchrun_command(2, "run", config, "--out", out), stderr=subprocess.PIPE)
    while under_way.poll() is None and not ((out / "log.jsonl").exists() and len(losses(out)) > 3):
        pass
    under_way.terminate()
    complained = under_way.communicate(timeout=120)[1].decode()
    assert under_way.returncode != 0 and complained.count("Stopped after step") == 1, complained
    assert list((out / "checkpoints").glob("step-*"))


def test_what_is_read_in_the_middle_and_damaged_ends_all(tmp_path: Path):
    """A process whose rows can't be read ends, and the other one doesn't wait for it."""
    documents = [[3 + i % 60 for i in range(30)] + [EOS] for _ in range(40)]
    write_documents(tmp_path / "texts", documents, facts(), {"tokenizer.json": b"any"})
    tokens = next((tmp_path / "texts").rglob("tokens.bin"))
    data = bytearray(tokens.read_bytes())
    data[-200:] = b"\xff" * 200
    tokens.write_bytes(data)
    config = write_config(tmp_path, schedule={"steps": 60})
    two = ranks(2, "run", config, "--out", tmp_path / "run", out=tmp_path / "said")
    assert ended(two) == [1, 1], two[0].complained
    assert all("Traceback" not in each.complained for each in two)
    assert any("damaged" in each.complained for each in two), two[0].complained + two[1].complained
