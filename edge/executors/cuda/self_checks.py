"""One small launch of every operator, for `edge doctor`. An operator's own module says what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edge.errors import EdgeError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators import embedding
from edge.executors.cuda.trial import Trial

SELF_CHECKS: dict[str, Callable[[Trial], None]] = {"embed": embedding.self_check}
"""By operator: computes something and raises NativeError if the device gives other values."""


def self_check(device: Device) -> Iterator[tuple[str, str | None]]:
    """(operator, None or what is wrong) for all of them."""
    for name, check in SELF_CHECKS.items():
        try:
            with Trial(device) as trial:
                check(trial)
        except EdgeError as error:
            yield name, str(error)
        else:
            yield name, None
