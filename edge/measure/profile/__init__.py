"""Latency on this device: how fast a model runs, beside what the machine could do at most.

from edge.measure.profile import ProfileOptions, profile

result = profile("smollm2-135m", ProfileOptions(prefill=(512,), generate=64, depth=(0, 1024)))
for row in result.results:
    print(row.test, row.depth, row.tokens_per_second.median, row.bandwidth_share)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.measure.profile.options import ProfileOptions
    from edge.measure.profile.run import profile
    from edge.measure.profile.schema import Profile

__all__ = ["Profile", "ProfileOptions", "profile"]

_HOME = {
    "Profile": "edge.measure.profile.schema",
    "ProfileOptions": "edge.measure.profile.options",
    "profile": "edge.measure.profile.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge.measure.profile' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
