"""A run that was killed or stopped goes on as if nothing had been."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from edge.errors import TrainingError
from edge.train.pretrain import train
from tests.train.runs import (
    Program,
    Said,
    assert_same_run,
    finished,
    run,
    run_config,
    until,
    write_config,
)

LONG = {
    "schedule": {"steps": 24, "decay": 0.5},
    "evaluation": {"every": 5},
    "checkpoints": {"every": 3},
    "log": {"every": 2},  # a checkpoint lies between two lines
}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path, kills: int):
    """Losses, gradient norms, held-out losses and weights, bit for bit."""
    run(tmp_path, "whole", loss={"multi_token": 0.2}, **LONG)
    config = write_config(tmp_path, loss={"multi_token": 0.2}, **LONG)
    make, out = random.Random(kills), tmp_path / "killed"
    steps = sorted(make.choices(range(2, 10), k=kills))
    for step in steps:
        program = Program("run", config, "--out", out, out=tmp_path / "said")
        until(out / "log.jsonl", step, program)
        program.signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL, program.complained
    code, printed, complained = finished("run", config, "--out", out, out=tmp_path / "said")
    assert code == 0 and "Goes on after step" in complained, complained
    assert printed == f"Trained {out}/model; chat with it: edge chat {out}/model\n"
    assert_same_run(tmp_path / "whole", out)
    assert {path.name for path in (out / "checkpoints").iterdir()} >= {"step-00000021", "step-00000024"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_the_run_goes_on(tmp_path: Path, number: signal.Signals):
    config, out = write_config(tmp_path, **{**LONG, "checkpoints": {"every": 1000}}), tmp_path / "stopped"
    program = Program("run", config, "--out", out, out=tmp_path / "said")
    until(out / "log.jsonl", 3, program)
    program.signal(number)
    assert program.wait() == 128 + number
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"\nStopped after step {step}; the same command goes on from there.\n" in program.complained
    assert not program.printed and not (out / "model").exists()
    run(tmp_path, "whole", **LONG)
    run(tmp_path, "stopped", **LONG)  # how often checkpoints are made may change
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_at_once_and_a_second_request_waits(tmp_path: Path, number: int):
    """Inside a step that takes long. A terminal and a launcher may each send a signal: only Ctrl-C twice is
    urgent.
    """
    config = write_config(tmp_path, data={"rows": 2000}, schedule={"steps": 2}, runtime={"accumulation": 500})
    out = tmp_path / "run"
    program = Program("run", config, "--out", out, out=tmp_path / "said")
    until(out / "log.jsonl", 0, program)
    while program.process.is_alive():
        program.signal(number)
        program.process.join(0.2)
    program.wait()
    assert bool(list(out.rglob("step-*"))) == (number == signal.SIGTERM)


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path):
    config, out = write_config(tmp_path, schedule={"steps": 2000}), tmp_path / "run"
    program = Program("run", config, "--out", out, out=tmp_path / "said")
    until(out / "log.jsonl", 5, program)  # behind a checkpoint
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, schedule={"steps": 2000})
    assert str(caught.value) == f"Another run is writing to '{out}'; wait for it or choose another --out."
    program.signal(signal.SIGKILL)
    program.wait()
    with pytest.raises(TrainingError, match=r"steps = 2000, not 1500; choose another --out, or set start"):
        run(tmp_path, schedule={"steps": 1500})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("done")
    run(folder)
    return folder


@pytest.mark.parametrize(
    ("section", "values", "name"),
    [
        ("data", {"rows": 8}, "data.rows = 4, not 8"),
        ("optimizer", {"learning_rate": 0.02}, "optimizer.learning_rate = 0.01, not 0.02"),
        ("model", {"sparse": {"topk": 4}}, "model.changes.sparse.topk = None, not 4"),
        ("seed", 1, "seed = 0, not 1"),
        ("evaluation", {"rows": 8}, "evaluation.rows = 4, not 8"),
    ],
)
def test_other_options_are_refused_by_name(done: Path, section: str, values: object, name: str):
    with pytest.raises(TrainingError) as caught:
        run(done, **{section: values})  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"'{done}/run' holds a run with {name}; choose another --out, or set start.path to that folder to "
        "go on from it."
    )


def test_what_changes_nothing_learned_may_change(done: Path, tmp_path: Path):
    folder = tmp_path / "done"
    shutil.copytree(done, folder)
    whole, _ = run_config(done), None
    said = Said()
    (folder / "run" / "model").rename(folder / "first")
    config = run_config(done, runtime={"threads": 1}, checkpoints={"every": 1, "keep": 1}, log={"every": 3})
    assert config.to_json() != whole.to_json()
    outcome = train(config, folder / "run", said)
    assert outcome.step == 6 and outcome.model == folder / "run" / "model"
    assert not said.steps, "nothing was left to do"


def test_options_may_change_before_the_first_checkpoint(tmp_path: Path):
    """A run that failed at once, because of a wrong path, is mended in its own folder."""
    with pytest.raises(Exception, match="nowhere"):
        run(tmp_path, data={"sources": {"t": str(tmp_path / "nowhere")}})
    assert run(tmp_path)[0].step == 6
