"""What a run leaves to be watched: its log, TensorBoard's files, JSON and pictures."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from edge.errors import TrainingError
from edge.train.metrics import Metrics, read_log
from edge.train.plot import plot_runs
from tests.train.runs import finished, run, write_config


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {
        name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]
    }


def test_tensorboard_shows_the_log_once_also_after_resuming(tmp_path: Path):
    """The second time the run goes on from step 4, and has logged steps 5 and 6 before."""
    log = {"log": {"tensorboard": True}}
    run(tmp_path, **log)
    (tmp_path / "run" / "model").rename(tmp_path / "model")
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "manifest.json"
    newest.write_bytes(b"")
    run(tmp_path, **log)
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    found = scalars(tmp_path / "run")
    assert found.keys() == {name for line in lines for name in line} - {"step"}
    for name, values in found.items():
        wanted = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert values == wanted, name
    assert {"loss", "gradient_norm", "held_out/t", "epochs/t", "learning_rate"} <= found.keys()


def test_steps_that_are_taken_back_are_gone_from_the_log(tmp_path: Path):
    with Metrics(tmp_path, 0, False, pytest.fail) as metrics:
        for step in range(1, 6):
            metrics.write({"step": step, "loss": 1.0 / step})
    with Metrics(tmp_path, 3, False, pytest.fail) as metrics:
        metrics.write({"step": 4, "loss": 9.0})
    assert [line["loss"] for line in read_log(tmp_path)] == [1.0, 0.5, 1 / 3, 9.0]


def test_json_is_the_last_line_of_the_log(tmp_path: Path):
    config, out = write_config(tmp_path), tmp_path / "run"
    code, printed, _ = finished("run", config, "--out", out, "--json", out=tmp_path / "said")
    assert code == 0
    assert json.loads(printed) == {"schema": 1, "run": str(out), **read_log(out)[-1]}


def test_runs_are_drawn_into_one_picture(tmp_path: Path):
    run(tmp_path, "one")
    run(tmp_path, "two", optimizer={"learning_rate": 1e-3}, evaluation={"sources": {}})
    picture = tmp_path / "runs.png"
    code, printed, complained = finished(
        "plot", tmp_path / "one", tmp_path / "two", "--out", picture, "--average", 2, out=tmp_path / "said"
    )
    assert code == 0 and printed == f"Wrote {picture}.\n", complained
    data = picture.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and width > 300 and height > 300
    plot_runs([tmp_path / "one"], tmp_path / "alone.png")
    assert (tmp_path / "alone.png").read_bytes() != data


def test_what_cant_be_drawn_is_named(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"has no log\.jsonl"):
        plot_runs([tmp_path], tmp_path / "x.png")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "tokens": 3, "learning_rate": 1, "loss": null}\n')
    with pytest.raises(TrainingError, match=f"^The log of '{tmp_path.name}' has no losses yet"):
        plot_runs([tmp_path], tmp_path / "x.png")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(TrainingError, match="damaged"):
        plot_runs([tmp_path], tmp_path / "x.png")
    run(tmp_path, "run")
    with pytest.raises(TrainingError, match="nowhere"):
        plot_runs([tmp_path / "run"], tmp_path / "nowhere" / "x" / "y.png")


def test_runs_of_one_name_are_two_runs(tmp_path: Path):
    """In folders of different comparisons; the picture has both."""
    for name, rate in (("a", 1e-2), ("b", 1e-3)):
        run(tmp_path, f"{name}/run", optimizer={"learning_rate": rate}, evaluation={"sources": {}})
    pictures = []
    for runs in (["a"], ["b"], ["a", "b"]):
        plot_runs([tmp_path / name / "run" for name in runs], tmp_path / "x.png")
        pictures.append((tmp_path / "x.png").read_bytes())
    assert len(set(pictures)) == 3
