"""The doctor's small launches, on a simulated device that is right and on one that is not."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import NativeError
from edge.executors.cuda.device import Device
from edge.executors.cuda.self_checks import SELF_CHECKS, self_check
from edge.executors.cuda.trial import Trial


def test_right_values_are_taken_for_right(device: Device):
    free = device.free_memory
    assert dict(self_check(device)) == dict.fromkeys(SELF_CHECKS)
    assert device.free_memory == free


def test_wrong_values_are_named(device: Device, monkeypatch: pytest.MonkeyPatch):
    """A device whose launches do nothing."""
    monkeypatch.setattr(device, "launch", lambda kernel, grid, arguments: None)
    found = dict(self_check(device))
    assert found["embed"] == "the largest difference from the right values is 40"
    assert None not in found.values()


@pytest.mark.parametrize(
    ("value", "tolerance", "sound"),
    [(1.0, 0, True), (1.1, 0.2, True), (1.1, 0.01, False), (np.nan, 9, False)],
)
def test_how_far_values_may_be(device: Device, value: float, tolerance: float, sound: bool):
    with Trial(device) as trial:
        address = trial.sent(np.array([value, 0.0], np.float32))
        wanted = np.array([1.0, 0.0], np.float32)
        if sound:
            trial.expect(address, wanted, tolerance)
        else:
            with pytest.raises(NativeError, match="largest difference"):
                trial.expect(address, wanted, tolerance)
