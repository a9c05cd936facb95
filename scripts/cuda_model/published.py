"""Speeds of MiniCPM4-8B that others have published, to stand beside predictions.

From the charts of the MiniCPM4 report (arXiv:2506.07900), read to about 1 %: CPM.cu with W4A16 weights,
groups of 128, and sparse attention. Decoding is with speculation, and on the RTX 4090 without it as well
(time per token).
"""

from __future__ import annotations

CONTEXTS = (32768, 65536, 131072)
_CPM: dict[str, dict[str, tuple[float, ...]]] = {
    "jetson-agx-orin": {"prefill": (1162, 1166, 1097), "decode, with guesses": (58.8, 57.4, 46.4)},
    "rtx-4090": {
        "prefill": (8357, 8008, 7170),
        "decode": (1000 / 9.85, 1000 / 11.92, 1000 / 15.55),
        "decode, with guesses": (223.7, 186.2, 148.1),
    },
}


def published(gpu: str, test: str, context: int) -> float | None:
    """Tokens/s of CPM.cu; test: `prefill`, `decode`, or `decode, with guesses`."""
    found = dict(zip(CONTEXTS, _CPM.get(gpu, {}).get(test, ()), strict=False))
    return found.get(context)
