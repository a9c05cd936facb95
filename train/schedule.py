"""Learning rates over the steps: warmup-stable-decay (MiniCPM, arXiv 2404.06395, section 4) and cosine.

Warmup-stable-decay is constant between warm-up and decay, so a decay can begin at any checkpoint of that
stage: one long run gives a model for every length. A cosine has to know its end from the first step.
"""

from __future__ import annotations

import math

from edge.train.config import ScheduleSection


def decay_steps(schedule: ScheduleSection) -> int:
    """Steps of the decay, the run's last ones; 0 without one."""
    return round(schedule.decay * schedule.steps) if schedule.kind == "wsd" else 0


def rate(schedule: ScheduleSection, step: int) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest."""
    if step < schedule.warm_up:
        return (step + 1) / schedule.warm_up
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "cosine":
        passed = (step - schedule.warm_up) / max(schedule.steps - schedule.warm_up, 1)
        return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * passed)) / 2
    decay = decay_steps(schedule)
    # The first step of the decay is below the highest rate already, and the last one has the floor.
    passed = (step + 1 - (schedule.steps - decay)) / decay if decay else 0.0
    return _decayed(schedule, passed) if passed > 0 else 1.0


def _decayed(schedule: ScheduleSection, passed: float) -> float:
    """The rate after this share of the decay."""
    if schedule.shape == "exponential":  # 0.5^(s / half-life), the half-life such that it ends at the floor
        return max(schedule.floor, _LEAST) ** passed
    share = passed if schedule.shape == "linear" else math.sqrt(passed)
    return schedule.floor + (1 - schedule.floor) * (1 - share)


_LEAST = 1e-3
"""An exponential never reaches 0: a floor below this share counts as this."""
