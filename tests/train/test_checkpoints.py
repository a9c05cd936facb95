"""Checkpoints are whole or not there, fall back when damaged, and only load into what they are of."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from edge.errors import TrainingError
from edge.formats.hashing import file_sha256, json_digest
from edge.train.checkpoints import CheckpointStore, load_weights
from edge.train.distributed import World
from tests.durability import LINUX, Recorder
from tests.train.ranks import Run, everything, full_disk, new_run, train

ROOT = Path(__file__).resolve().parents[2]
ALONE = World()


@pytest.fixture(scope="module")
def trained() -> Run:
    run = new_run(ALONE)
    train(run, range(2))
    return run


def store(folder: Path, keep: int = 2, **options: object) -> CheckpointStore:
    return CheckpointStore(folder, keep, ALONE, **options)  # type: ignore[arg-type]


def two_steps(folder: Path, run: Run) -> None:
    for step in (1, 2):
        store(folder).save(step, *run[:2], {"step": step})


FILES = ("manifest.json", "host.json", ".metadata", "__0_0.distcp")


@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_makes_it_take_the_one_before(tmp_path: Path, trained: Run, name: str, damage: str):
    two_steps(tmp_path, trained)
    path = tmp_path / "step-00000002" / name
    assert sorted(FILES) == sorted(each.name for each in path.parent.iterdir())
    data = bytearray(path.read_bytes())
    if damage == "changed":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    said: list[str] = []
    fresh = new_run(ALONE, seed=1)
    loaded = store(tmp_path).load(*fresh[:2], said.append)
    assert loaded is not None and loaded.step == 1 and loaded.host == {"step": 1}
    (sentence,) = said
    assert f"'{path.parent}' is damaged" in sentence and name in sentence, sentence
    with pytest.raises(TrainingError, match=r"step-00000002' is damaged .*; choose another step\.$"):
        store(tmp_path).load(*fresh[:2], pytest.fail, step=2)
    wanted = everything(trained)
    assert all(torch.equal(each, wanted[name]) for name, each in everything(fresh).items())


def test_when_all_are_damaged_nothing_begins_from_scratch(tmp_path: Path, trained: Run):
    assert store(tmp_path / "none").load(*trained[:2], pytest.fail) is None
    two_steps(tmp_path, trained)
    for path in tmp_path.rglob("host.json"):
        path.unlink()
    said: list[str] = []
    with pytest.raises(TrainingError, match=f"^All checkpoints in '{tmp_path}' are damaged; "):
        store(tmp_path).load(*trained[:2], said.append)
    assert len(said) == 2


def test_what_stays(tmp_path: Path, trained: Run):
    """The last two, milestones and multiples of four; never a step of a future that was given up."""
    runs = store(tmp_path, keep_every=4, milestones=[3])
    for step in range(1, 9):
        runs.save(step, *trained[:2], {})
    assert runs.steps() == [3, 4, 7, 8]
    again = store(tmp_path, keep=1, keep_every=4)
    with pytest.raises(TrainingError, match=r"has no checkpoint of step 5; there are 3, 4, 7, 8\.$"):
        again.load(*trained[:2], pytest.fail, step=5)
    again.load(*trained[:2], pytest.fail, step=4)
    assert again.steps() == [3, 4, 7, 8]
    again.save(7, *trained[:2], {"second": True})
    assert again.steps() == [4, 7]
    loaded = store(tmp_path).load(*trained[:2], pytest.fail)
    assert loaded is not None and loaded.host == {"second": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000007"]


def test_a_step_is_written_once(tmp_path: Path, trained: Run):
    """A signal may ask for a save just after one."""
    runs = store(tmp_path)
    runs.save(1, *trained[:2], {"first": True})
    before = (tmp_path / "step-00000001").stat().st_ino
    runs.save(1, *trained[:2], {"first": False})
    assert (tmp_path / "step-00000001").stat().st_ino == before
    runs.save(2, *trained[:2], {})
    runs.load(*trained[:2], pytest.fail, step=1)
    runs.save(2, *trained[:2], {"again": True})
    loaded = store(tmp_path).load(*trained[:2], pytest.fail)
    assert loaded is not None and loaded.host == {"again": True}


def test_weights_alone_begin_another_run(tmp_path: Path, trained: Run):
    two_steps(tmp_path, trained)
    fresh = new_run(ALONE, seed=1)
    assert load_weights(tmp_path, fresh.network, ALONE, pytest.fail, step=1).host == {"step": 1}
    assert all(not optimizer.state for optimizer in fresh.optimizers)
    decoder = new_run(ALONE, seed=2).network.decoder
    load_weights(tmp_path, decoder, ALONE, pytest.fail, prefix="decoder.")
    for name, tensor in trained.network.decoder.state_dict().items():
        assert torch.equal(fresh.network.decoder.state_dict()[name], tensor)
        assert torch.equal(decoder.state_dict()[name], tensor)
    with pytest.raises(TrainingError, match=r"nothing' has no checkpoints; name the folder"):
        load_weights(tmp_path / "nothing", decoder, ALONE, pytest.fail)


def test_another_network_is_refused_by_the_tensors_name(tmp_path: Path, trained: Run):
    two_steps(tmp_path, trained)
    other = new_run(ALONE)
    other.network.idle = torch.nn.Parameter(torch.ones(2, 4))
    with pytest.raises(
        TrainingError, match=r"^'idle' is 3 in the checkpoint '.*' and 2 x 4 here; it is of another"
    ):
        store(tmp_path).load(other.network, [], pytest.fail)
    del other.network.idle
    with pytest.raises(TrainingError, match=r"has 'idle' and this network has not"):
        store(tmp_path).load(other.network, [], pytest.fail)
    other = new_run(ALONE)
    other.network.extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TrainingError, match=r"has no 'extra'; it is of another network\.$"):
        store(tmp_path).load(*other[:2], pytest.fail)


def test_other_optimizers_are_refused(tmp_path: Path, trained: Run):
    two_steps(tmp_path, trained)
    network = new_run(ALONE).network
    sentence = (
        r"has Muon's state of 'decoder\.model\.layers.*', which this run does not train with Muon; use the"
    )
    with pytest.raises(TrainingError, match=sentence):
        store(tmp_path).load(network, [AdamW(network.parameters())], pytest.fail)


def test_optimizer_state_is_replaced_whole(tmp_path: Path, trained: Run):
    """What an optimizer remembered before is gone, also where the checkpoint has nothing."""
    two_steps(tmp_path, trained)
    run = new_run(ALONE, seed=1)
    run.network.idle.grad = torch.ones(3)
    train(run, range(1))
    assert run.optimizers[1].state[run.network.idle]
    store(tmp_path).load(*run[:2], pytest.fail)
    assert not run.optimizers[1].state.get(run.network.idle)
    assert everything(run).keys() == everything(trained).keys()


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


def test_a_pickle_in_a_checkpoint_runs_nothing(tmp_path: Path, trained: Run, monkeypatch: pytest.MonkeyPatch):
    """Even if whoever made it has its checksums right."""
    monkeypatch.chdir(tmp_path)
    two_steps(tmp_path / "run", trained)
    path = tmp_path / "run" / "step-00000002"
    (path / ".metadata").write_bytes(pickle.dumps(Harm()))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["digest"]
    size = (path / ".metadata").stat().st_size
    manifest["files"][".metadata"] = {"bytes": size, "sha256": file_sha256(path / ".metadata")}
    (path / "manifest.json").write_text(json.dumps({**manifest, "digest": json_digest(manifest)}))
    with pytest.raises(
        TrainingError, match=r"does not describe a checkpoint \(it wants to run posix\.mkdir\)"
    ):
        store(tmp_path / "run").load(*trained[:2], pytest.fail)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("limit", [300, 1000, 60_000, 300_000, 500_000])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tmp_path: Path, trained: Run, limit: int):
    """Wherever a write fails: of a tensor's bytes, at its end, of the description."""
    two_steps(tmp_path, trained)
    assert full_disk(tmp_path, trained, limit) == f"Cannot write '{tmp_path / 'step-00000007'}': too large."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert full_disk(tmp_path, trained, 1 << 30) == "saved"
    assert store(tmp_path).steps() == [2, 7]


@LINUX
def test_a_power_cut_leaves_a_whole_checkpoint(tmp_path: Path, trained: Run, monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder(monkeypatch)
    store(tmp_path).save(1, *trained[:2], {})
    recorder.events = [  # torch's own temporary name, which it renames before it returns
        (event, path.with_name(".metadata") if path.name == ".metadata.tmp" else path)
        for event, path in recorder.events
    ]
    recorder.assert_durable(tmp_path / "step-00000001")


@pytest.mark.skipif(sys.platform != "linux", reason="forks writers and kills them")
def test_killed_writers_and_full_disks_leave_what_loads(tmp_path: Path):
    command = [sys.executable, "-m", "tests.torture", "--write", "training checkpoint"]
    command += ["--kills", "8", "--fills", "3", "--races", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])["writes"]["training checkpoint"]
    assert found["kills"][0] == 8 and found["limits"] == [3, 3] and found["races"] == 1
