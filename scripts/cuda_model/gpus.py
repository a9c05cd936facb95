"""GPUs: what their makers say of them, and what had to be assumed.

Sources: NVIDIA's data sheets "Jetson AGX Orin Series" (DS-10662-001), "Jetson Orin Nano Series"
(DS-11105-001, and the note on its Super mode) and "Jetson Thor Series" (DS-11945-001); the white papers
"NVIDIA Ada GPU Architecture" and "NVIDIA H100 Tensor Core GPU Architecture"; the table "Technical
Specifications per Compute Capability" of the CUDA programming guide. Clocks of L2 and memory on the last two:
W. Luo et al., arXiv:2402.13499.
"""

from __future__ import annotations

from dataclasses import dataclass

REACHED = 0.85
"""Share of the memory's bandwidth that a long read gets; assumed. TensorRT-Edge-LLM's published 50.8 tokens/s
of Llama-3.1-8B int4 on Thor are 84 to 93 % of it, by how its head is stored.
"""

ISSUED = 0.8
"""Share of issue slots and of tensor cores that a busy kernel uses; assumed."""


USED = 0.9
"""Share of its memory that weights and caches may take; assumed."""


@dataclass(frozen=True)
class Gpu:
    """memory: bytes. bandwidth: of that, bytes/s. clock: Hz, of the multiprocessors. tensor: multiply-adds of
    float16, with float32 sums, a clock and multiprocessor, by `mma.sync`. registers, shared, warps, blocks:
    what a multiprocessor can hold. cache: bytes of L2. l2_latency, latency: clocks until L2 or memory
    answers. gap: seconds between two kernels of a graph. assumed: which of them have no public source.
    """

    title: str
    memory: float
    bandwidth: float
    multiprocessors: int
    clock: float
    tensor: int
    shared: int
    warps: int
    blocks: int
    cache: int
    l2_latency: int
    latency: int
    gap: float
    assumed: str
    registers: int = 1 << 16

    @property
    def issue_rate(self) -> float:
        """Warp instructions a second: four schedulers a multiprocessor."""
        return 4 * self.multiprocessors * self.clock

    @property
    def l2_bandwidth(self) -> float:
        """Bytes a second from L2: 64 a clock and multiprocessor."""
        return 64 * self.multiprocessors * self.clock

    @property
    def tensor_rate(self) -> float:
        """Multiply-adds a second of all tensor cores."""
        return self.tensor * self.multiprocessors * self.clock


_ORIN = "latencies (260 and 800 clocks), gap (2 µs)"
GPUS = {
    "jetson-agx-orin": Gpu(
        "Jetson AGX Orin 64 GB",
        64e9,
        204.8e9,
        16,
        1.3e9,
        1024,
        164 << 10,
        48,
        16,
        4 << 20,
        260,
        800,
        2e-6,
        _ORIN,
    ),
    "jetson-orin-nano-super": Gpu(
        "Jetson Orin Nano Super",
        8e9,
        102e9,
        8,
        1.02e9,
        1024,
        164 << 10,
        48,
        16,
        2 << 20,
        260,
        800,
        2e-6,
        _ORIN,
    ),
    "jetson-thor": Gpu(
        "Jetson Thor",
        128e9,
        273e9,
        20,
        1.575e9,
        1024,
        228 << 10,
        48,
        24,
        32 << 20,
        260,
        800,
        2e-6,
        f"the rate of `mma.sync`: that of Orin; {_ORIN}",
    ),
    "rtx-4090": Gpu(
        "RTX 4090", 24e9, 1008e9, 128, 2.52e9, 512, 100 << 10, 48, 24, 72 << 20, 273, 542, 1e-6, "gap (1 µs)"
    ),
    # Luo et al.: `mma.sync` reaches 62.9 % of what `wgmma` does, 2048 multiply-adds a clock.
    "h100": Gpu(
        "H100 SXM", 80e9, 3350e9, 132, 1.83e9, 1288, 228 << 10, 64, 32, 50 << 20, 263, 479, 1e-6, "gap (1 µs)"
    ),
}
