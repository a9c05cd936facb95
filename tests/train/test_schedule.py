"""Learning rates against PyTorch's own schedulers and the published formula, and decays that branch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from edge.errors import TrainingError
from edge.train.config import ScheduleSection
from edge.train.schedule import decay_steps, rate
from tests.train.runs import assert_same_run, curve, losses, run, weights


def rates(**options: object) -> list[float]:
    schedule = ScheduleSection(**options)  # type: ignore[arg-type]
    return [rate(schedule, step) for step in range(schedule.steps)]


def scheduled(steps: int, make: object) -> list[float]:
    """The learning rates that a scheduler of PyTorch gives."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_and_cosine_are_those_of_pytorch():
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        warm_up = lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, 4)  # its fifth step has the highest rate
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, 25, eta_min=0.1)
        return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [5])

    assert rates(steps=30, warm_up=5, kind="cosine") == pytest.approx(scheduled(30, make))
    assert rates(steps=30, warm_up=5, kind="constant")[5:] == [1.0] * 25


def test_a_linear_decay_is_that_of_pytorch():
    """The first decaying step is below the highest rate, the last one has the floor."""
    found = rates(steps=40, warm_up=0, decay=0.25, shape="linear", floor=0.2)
    wanted = scheduled(11, lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.2, 10))
    assert found[:30] == [1.0] * 30 and found[29:] == pytest.approx(wanted)


def test_an_exponential_decay_is_that_of_pytorch():
    found = rates(steps=40, warm_up=0, decay=0.25, shape="exponential", floor=0.1)
    wanted = scheduled(11, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / 10)))
    assert found[29:] == pytest.approx(wanted)
    # MiniCPM writes it as 0.5 ^ ((s - T) / half-life): halved every log10(2) of the ten steps here.
    half_life = 10 * math.log10(2)
    assert found[29:] == pytest.approx([0.5 ** (step / half_life) for step in range(11)])
    assert rates(steps=40, warm_up=0, decay=0.25, floor=0.0)[-1] == pytest.approx(1e-3)


def test_the_root_shape_is_1_minus_the_root():
    """Haegele et al., arXiv 2405.18392, equation 2."""
    found = rates(steps=20, warm_up=2, decay=0.5, shape="1-sqrt", floor=0.0)
    assert found[9:] == pytest.approx([1 - math.sqrt(n / 10) for n in range(11)])


@pytest.mark.parametrize("shape", ["exponential", "linear", "1-sqrt"])
@pytest.mark.parametrize("steps", [1, 3, 7, 50])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("warm_up", [0, 5, 100])
def test_every_rate_lies_between_zero_and_one(shape: str, steps: int, decay: float, warm_up: int):
    """Also where warm-up and decay overlap or are longer than the run."""
    found = rates(steps=steps, warm_up=warm_up, decay=decay, shape=shape)
    assert all(0 < each <= 1 for each in found)
    assert decay_steps(ScheduleSection(steps, decay=decay)) == round(steps * decay)


STABLE = {"schedule": {"steps": 4, "kind": "constant", "warm_up": 2}}
WHOLE = {"schedule": {"steps": 8, "warm_up": 2, "decay": 0.5}}


def test_a_decay_from_a_stable_run_is_the_run_from_scratch(tmp_path: Path):
    """Bit for bit; also from a checkpoint in the middle that was kept, while the stable run went on."""
    run(tmp_path, "whole", **WHOLE)
    run(tmp_path, "stable", **STABLE)
    run(tmp_path, "branch", start={"path": str(tmp_path / "stable"), "what": "everything"}, **WHOLE)
    assert curve(tmp_path / "branch") == curve(tmp_path / "whole")[4:]
    longer = {"schedule": {**STABLE["schedule"], "steps": 10}, "checkpoints": {"keep": 1, "keep_at": [4]}}
    run(tmp_path, "longer", **longer)
    step = tmp_path / "longer" / "checkpoints" / "step-00000004"
    run(tmp_path, "later", start={"path": str(step), "what": "everything"}, **WHOLE)
    for name in ("branch", "later"):
        assert all(
            torch.equal(e, weights(tmp_path / name)[n]) for n, e in weights(tmp_path / "whole").items()
        )
    (tmp_path / "stable").rename(tmp_path / "away")  # once it has a checkpoint, a branch stands alone
    run(tmp_path, "later", start={"path": str(step), "what": "everything"}, **WHOLE)
    assert_same_run(tmp_path / "branch", tmp_path / "later")


def test_a_run_that_is_over_cant_be_continued_by_a_shorter_one(tmp_path: Path):
    run(tmp_path, "stable", **STABLE)
    with pytest.raises(TrainingError, match=r"^The checkpoint has 4 steps already, and schedule.steps is 3"):
        run(
            tmp_path,
            start={"path": str(tmp_path / "stable"), "what": "everything"},
            schedule={"steps": 3, "warm_up": 1},
        )


def test_only_weights_begin_at_step_one(tmp_path: Path):
    run(tmp_path, "stable", schedule={"steps": 16, "warm_up": 2})
    run(tmp_path, "next", start={"path": str(tmp_path / "stable")})
    first, last = losses(tmp_path / "stable")[0], losses(tmp_path / "stable")[-1]
    assert [line["step"] for line in curve(tmp_path / "next")] == [1, 2, 3, 4, 5, 6]
    assert abs(losses(tmp_path / "next")[0] - last) < 0.3 * (first - last)
