"""Damaged files, full disks and losses that are no numbers: what a run says, and that it loses nothing."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.config import ModelConfig
from edge.errors import TrainingError
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import save_huggingface
from edge.train.data.shards import ShardFolder
from edge.train.metrics import Metrics, read_log
from edge.train.network import model_config
from edge.train.texts import open_texts
from tests.train.runs import assert_same_run, finished, plain_steps, run, run_config, weights, write_config

UNTIED = {"tie_word_embeddings": False}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("done")
    run(folder)
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy of it, without the model: resumed, it is written anew."""
    shutil.copytree(done, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "model")
    return tmp_path / "copy"


def resume(done: Path, folder: Path) -> list[str]:
    """Go on in folder/run with the run of `done`; returns what was said."""
    _, said = run(done, str(folder / "run"))
    return said.sentences


def test_a_damaged_checkpoint_is_passed_over_and_the_curve_is_the_same(done: Path, copied: Path):
    newest = copied / "run" / "checkpoints" / "step-00000006"
    (newest / "host.json").write_bytes(b"{}")
    (sentence,) = resume(done, copied)
    assert sentence.startswith(f"The checkpoint '{newest}' is damaged (host.json does not match")
    assert sentence.endswith("the one before it is tried.")
    assert_same_run(done / "run", copied / "run")


def test_without_a_whole_checkpoint_nothing_begins(done: Path, copied: Path):
    for path in copied.rglob("host.json"):
        path.unlink()
    log = (copied / "run" / "log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=r"^All checkpoints in .* are damaged; move them away to begin"):
        resume(done, copied)
    assert (copied / "run" / "log.jsonl").read_bytes() == log


def test_half_a_line_of_the_log_is_dropped(done: Path, copied: Path):
    with (copied / "run" / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo')
    assert not resume(done, copied)
    assert_same_run(done / "run", copied / "run")


def cut_log(run: Path) -> None:
    data = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(data[:20] + data[40:])


def empty_config(run: Path) -> None:
    (run / "config.json").write_bytes(b"")


def list_config(run: Path) -> None:
    (run / "config.json").write_bytes(b"[1]")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_log, r"^Line 1 of '.*log.jsonl' is not valid JSON: .*; remove the line\.$"),
        (empty_config, r"^'.*config.json' is not valid JSON: .*; remove the folder\.$"),
        (list_config, r"^'.*config.json' must hold a JSON object; remove the folder\.$"),
    ],
)
def test_damaged_files_are_named(done: Path, copied: Path, damage: Callable[[Path], None], sentence: str):
    damage(copied / "run")
    with pytest.raises(TrainingError, match=sentence):
        resume(done, copied)


def test_a_folder_that_cant_be_written(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"file/run"):
        run(tmp_path, "file/run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_bytes(b"")
    with pytest.raises(TrainingError, match="tensorboard"):
        run(tmp_path, log={"tensorboard": True})


def test_a_full_disk_ends_the_run_at_its_last_step_only(tmp_path: Path):
    """Checkpoints are larger than the limit, so each of them fails; with room the run goes on."""
    config, out = write_config(tmp_path), tmp_path / "run"
    code, _, said = finished("run", config, "--out", out, out=tmp_path / "said", limit=20_000)
    lines = said.splitlines()
    assert code == 1 and "Traceback" not in said
    for step in (2, 4):
        (line,) = (each for each in lines if each.startswith(f"No checkpoint at step {step}: "))
        assert "File too large" in line and line.endswith(" The run goes on.")
    assert lines[-1].startswith("Error: ") and "step-00000006" in lines[-1] and "File too large" in lines[-1]
    assert [line["step"] for line in read_log(out)] == [1, 2, 3, 4, 5, 6]
    assert not list(out.rglob("*.partial"))
    run(tmp_path)
    run(tmp_path, "whole")
    assert_same_run(tmp_path / "whole", out)


def test_lines_of_the_log_wait_for_room(tmp_path: Path):
    """With room for one line and a half, one stands there and nothing may count on the others."""
    said: list[str] = []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Metrics(tmp_path, 0, False, said.append) as metrics:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, limit[1]))
        try:
            for step in (1, 2, 3):
                metrics.write({"step": step, "x": 0.5})
            with pytest.raises(TrainingError, match=r"log.jsonl.*File too large"):
                metrics.sync()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1, "x": 0.5}\n'
        (sentence,) = said
        assert "File too large" in sentence and sentence.endswith(
            "The run goes on, and the log's lines wait."
        )
        metrics.sync()
        metrics.write({"step": 4, "x": 0.5})
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path):
    """Another run's weights, one of them infinite."""
    start = infinite_model(tmp_path)
    config = write_config(tmp_path, start={"path": str(start)})
    code, _, said = finished("run", config, "--out", tmp_path / "run", out=tmp_path / "said")
    saved = tmp_path / "run" / "no-number-00000001-0.npz"
    assert code == 1
    assert said == (
        f"Error: The loss of step 1 is no number; its rows are in '{saved}'. Lower optimizer.learning_rate, "
        "or set runtime.on_nan=skip; the run goes on from its last checkpoint.\n"
    )
    with np.load(saved) as rows:
        assert {name: rows[name].shape for name in rows} == dict.fromkeys(
            ("tokens", "targets", "positions"), (4, 16)
        )


def infinite_model(folder: Path, token: int | None = None) -> Path:
    """A model whose embedding of one token (by default of all) is infinite."""
    options = run_config(folder, model=UNTIED if token is not None else {})
    shape: ModelConfig = model_config(options, ShardFolder.open(folder / "texts"))
    torch.manual_seed(0)
    state = {name: each.clone() for name, each in Decoder(shape).state_dict().items()}
    state["model.embed_tokens.weight"][slice(None) if token is None else token] = torch.inf
    save_huggingface(folder / "infinite", shape, state)
    return folder / "infinite"


def test_ten_skipped_steps_in_a_row_stop_it(tmp_path: Path):
    start = infinite_model(tmp_path)
    sections = {"start": {"path": str(start)}, "runtime": {"on_nan": "skip"}, "schedule": {"steps": 30}}
    with pytest.raises(TrainingError, match=r"^The loss of step 10 is no number"):
        run(tmp_path, **sections)
    assert len(list((tmp_path / "run").glob("no-number-*.npz"))) == 10
    lines = read_log(tmp_path / "run")
    assert [line["loss"] for line in lines] == [None] * 9 and "gradient_norm" not in lines[0]
    first, last = (checkpoint_weights(tmp_path / "run", step) for step in (6, 8))
    assert all(torch.equal(each, last[name]) for name, each in first.items())


def checkpoint_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    path = run / "checkpoints" / f"step-{step:08}"
    dcp_to_torch_save(path, path.with_suffix(".pt"))
    found = torch.load(path.with_suffix(".pt"), weights_only=True)
    return {name: each for name, each in flat(found).items() if isinstance(each, torch.Tensor)}


def flat(data: dict, prefix: str = "") -> dict:
    found = {}
    for name, each in data.items():
        found |= flat(each, f"{prefix}{name}.") if isinstance(each, dict) else {prefix + name: each}
    return found


def test_a_skipped_step_is_as_if_it_had_not_been(tmp_path: Path):
    """One token's embedding is infinite: steps that have it change nothing, and the others do what they do in
    a plain loop without those.
    """
    rare = rare_token(tmp_path)
    start = infinite_model(tmp_path, token=rare)
    sections = {
        "model": UNTIED,
        "start": {"path": str(start)},
        "runtime": {"on_nan": "skip"},
        "schedule": {"steps": 8},
    }
    outcome, said = run(tmp_path, **sections)
    skipped = [line["step"] for line in read_log(tmp_path / "run") if line["loss"] is None]
    assert 2 <= len(skipped) <= 6 and outcome.step == 8
    assert [sentence.split(" is no number")[0] for sentence in said.sentences] == [
        f"The loss of step {step}" for step in skipped
    ]
    assert all(sentence.endswith(" Skipped.") for sentence in said.sentences)
    plain, _ = plain_steps(run_config(tmp_path, **sections), skip=skipped)
    found = weights(tmp_path / "run")
    for name, wanted in plain.decoder.state_dict().items():
        torch.testing.assert_close(found[name], wanted, msg=name)
    assert torch.isinf(found["model.embed_tokens.weight"][rare]).all()


def rare_token(folder: Path) -> int:
    """A token that some steps of the run have and others have not."""
    config = run_config(folder)
    loader = open_texts(config).loader
    seen = [set(loader.next().tokens.flatten().tolist()) for _ in range(8)]
    return next(
        token
        for token in range(3, 64)
        if 2 <= sum(token in each for each in seen) <= 5 and token not in seen[0]
    )
