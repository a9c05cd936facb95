"""torch's matrix products in fp16 on the same GPU, where a torch with CUDA is installed."""

from __future__ import annotations

import statistics
from typing import Any


class Beside:
    """Times products. Make one with `Beside.of`."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    @classmethod
    def of(cls) -> Beside | None:
        """None without torch, and where it has no CUDA."""
        try:
            import torch
        except ImportError:
            return None
        return cls(torch) if torch.cuda.is_available() else None

    def product(self, rows: int, outputs: int, columns: int) -> float:
        """Seconds of [rows, columns] times the transpose of [outputs, columns], by cuBLAS: a median."""
        torch = self._torch
        x = torch.randn(rows, columns, device="cuda", dtype=torch.float16)
        weights = torch.randn(outputs, columns, device="cuda", dtype=torch.float16)
        seconds = []
        for _ in range(7):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(5):
                torch.nn.functional.linear(x, weights)
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / 5)
        return statistics.median(seconds[2:])
