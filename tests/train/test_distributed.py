"""Two processes compute what one does, and each goes on from the other's checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from edge.errors import TrainingError
from edge.train.checkpoints import CheckpointStore
from edge.train.distributed import World, clip, joined
from tests.train.ranks import MORE, STEPS, everything, new_run, train

ROOT = Path(__file__).resolve().parents[2]
ALONE = World()


class Both(NamedTuple):
    """folder: that of the ranks. ranks: what each of them found. losses, one: the run of a single process."""

    folder: Path
    ranks: list[dict[str, Any]]
    losses: list[tuple[float, float]]
    one: dict[str, Tensor]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("ranks")
    run = new_run(ALONE)
    losses = train(run, range(STEPS))
    one = everything(run)
    CheckpointStore(folder / "one", 2, ALONE).save(STEPS, *run[:2], {"seen": STEPS})
    damaged = CheckpointStore(folder / "damaged", 2, ALONE)
    damaged.save(1, *run[:2], {})
    damaged.save(2, *run[:2], {})
    (folder / "damaged" / "step-00000002" / "host.json").write_bytes(b"[]")
    losses += train(run, range(STEPS, STEPS + MORE))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.train.ranks", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    return Both(folder, ranks, losses, one)


def test_torchrun_makes_the_world(both: Both):
    assert [(each["rank"], each["size"]) for each in both.ranks] == [(0, 2), (1, 2)]


def test_two_processes_learn_as_one_does(both: Both):
    """Losses and gradient norms of AdamW and Muon; also after a checkpoint of the other."""
    for rank in both.ranks:
        torch.testing.assert_close(
            torch.tensor(rank["losses"]), torch.tensor(both.losses), atol=2e-4, rtol=2e-4
        )
        torch.testing.assert_close(
            torch.tensor(rank["resumed"]), torch.tensor(both.losses[STEPS:]), atol=2e-4, rtol=2e-4
        )


def test_a_checkpoint_of_one_is_what_two_read(both: Both):
    for rank in both.ranks:
        assert rank["loaded"].step == STEPS and rank["loaded"].host == {"seen": STEPS}
        assert_equal(rank["one"], both.one)


@pytest.mark.parametrize(("folder", "key"), [("two", "two"), ("back", "one")])
def test_a_checkpoint_of_two_is_what_one_reads(both: Both, folder: str, key: str):
    """Bit for bit, and it goes on as they did."""
    run = new_run(ALONE, seed=2)
    loaded = CheckpointStore(both.folder / folder, 2, ALONE).load(*run[:2], pytest.fail)
    assert loaded is not None and loaded.step == STEPS and loaded.host == {"seen": STEPS}
    assert_equal(everything(run), both.ranks[0][key])
    found = torch.tensor(train(run, range(STEPS, STEPS + MORE)))
    torch.testing.assert_close(found, torch.tensor(both.losses[STEPS:]), atol=2e-4, rtol=2e-4)


def test_a_parameter_without_gradients_has_no_state(both: Both):
    names = set(both.ranks[0]["one"])
    assert "idle" in names and not any(name.startswith("idle ") for name in names)
    assert "decoder.model.embed_tokens.weight exp_avg" in names


def test_ranks_agree_on_what_is_damaged(both: Both):
    assert [rank["fallen"] for rank in both.ranks] == [1, 1]
    (sentence,) = both.ranks[0]["said"]
    assert "step-00000002' is damaged (host.json does not match its checksum)" in sentence
    assert both.ranks[1]["said"] == []


def test_a_full_disk_of_one_rank_is_an_error_on_all(both: Both):
    for rank in both.ranks:
        assert rank["full"] == f"Cannot write '{both.folder / 'two' / 'step-00000007'}': too large."
    assert [path.name for path in (both.folder / "two").iterdir()] == ["step-00000005"]


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_clip_is_by_the_norm_of_all_gradients():
    run = new_run(ALONE)
    run.network(torch.arange(40).view(2, 20)).backward()
    gradients = [each.grad.clone() for each in run.network.parameters() if each.grad is not None]
    norm = torch.cat([each.flatten() for each in gradients]).norm()
    assert clip(run.network, float("inf")) == pytest.approx(float(norm), rel=1e-5)
    assert clip(run.network, 0.5) == pytest.approx(float(norm), rel=1e-5)
    for parameter, before in zip(run.network.decoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, before * (0.5 / norm))


ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            r"^The environment has RANK but not MASTER_PORT; start the .* torchrun, or unset RANK\.$",
        ),
        (
            {"MASTER_PORT": "1", "RANK": "first"},
            "^RANK must be a whole number, not 'first'; start the .* torchrun",
        ),
        ({"MASTER_PORT": "1", "RANK": "1"}, "^RANK is 1 and WORLD_SIZE 1; start the processes with torchrun"),
    ],
)
def test_a_half_set_environment_is_one_sentence(
    changes: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (ENVIRONMENT | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=sentence), joined("cpu"):
        pass


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as world:
        assert world == World(0, 1, torch.device("cpu")) and world.first
    with (
        pytest.raises(TrainingError, match="There is no device 'tpu'; choose one of auto, cpu, cuda"),
        joined("tpu"),
    ):
        pass
