"""Predicted speed of every device whose cores are known, as `edge profile --plan --device NAME` says it.

    python -m scripts.cycles.predictions

The last line is one JSON document. Nothing is measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from edge.measure.profile.devices import DEVICES
from edge.measure.profile.plan import PlannedDevice, plan

_MODELS = ("random:minicpm4-0.5b", "random:minicpm4-8b")
_QUANTIZE = ("int4", "ternary")
_PREFILL, _DEPTHS = 512, (0, 4096)
_CONTEXT = 8192


def main() -> None:
    """See the head of this file."""
    results = []
    for name, known in DEVICES.items():
        if known.cpu is None:
            continue
        device = PlannedDevice(known.title, known.bandwidth_gb_s, None, known.source, known.cpu)
        for model in _MODELS:
            plans = plan(
                model,
                quantize=_QUANTIZE,
                context=_CONTEXT,
                memory=int(known.memory_gb * 1e9),
                device=device,
                depth=_DEPTHS,
                prefill=(_PREFILL,),
            )
            for quantize, found in zip(_QUANTIZE, plans, strict=True):
                speeds = [asdict(each) for each in found.predicted]
                results.append(
                    {
                        "device": name,
                        "model": model,
                        "quantize": quantize,
                        "fits": found.fits,
                        "speeds": speeds,
                    }
                )
                rates = ", ".join(
                    f"{each.test} at {each.depth} {each.tokens_per_second:g} ({each.limit})"
                    for each in found.predicted
                )
                print(f"{name:28} {model:22} {quantize:8} {rates}")
    print(json.dumps({"predicted": True, "results": results}))


if __name__ == "__main__":
    main()
