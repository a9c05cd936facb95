"""GPUs: what their makers say of them, and what had to be assumed.

Sources: those of `edge.measure.profile.devices`; "NVIDIA Jetson AGX Orin Series Technical Brief" v1.2 (16
multiprocessors, 1.3 GHz, 4 MB of L2; 85 dense int8 TOPS are 1024 multiply-adds of float16 a clock and
multiprocessor); the data sheets of Orin Nano Super and Thor (1.02 and 1.575 GHz); what owners of a Thor read
from its driver (NVIDIA's developer forum, thread 356355: 20 multiprocessors, 32 MiB of L2); the white papers
of NVIDIA's Ada and H100 architectures; "Technical Specifications per Compute Capability" in the CUDA
programming guide. Clocks of L2 and memory on RTX 4090 and H100: W. Luo et al., arXiv:2402.13499.

Beyond what the planner has, figures stand here as they are remembered of these documents, which could not be
opened when this was written: look them up before quoting one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge.measure.profile.devices import DEVICES

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


def _known(name: str, assumed: str, **facts: Any) -> Gpu:
    """One whose memory `edge profile --plan` knows."""
    device = DEVICES[name]
    return Gpu(device.title, device.memory_gb * 1e9, device.bandwidth_gb_s * 1e9, assumed=assumed, **facts)


_ANSWERS = "latencies (260 and 800 clocks), gap (2 µs)"
_TEGRA: dict[str, Any] = {"tensor": 1024, "warps": 48, "l2_latency": 260, "latency": 800, "gap": 2e-6}
_ORIN = _TEGRA | {"shared": 164 << 10, "blocks": 16}
GPUS = {
    "jetson-agx-orin": _known(
        "jetson-agx-orin", _ANSWERS, multiprocessors=16, clock=1.3e9, cache=4 << 20, **_ORIN
    ),
    "jetson-orin-nano-super": _known(
        *("jetson-orin-nano-super", f"L2 (2 MiB), {_ANSWERS}"),
        multiprocessors=8,
        clock=1.02e9,
        cache=2 << 20,
        **_ORIN,
    ),
    "jetson-thor": _known(
        *("jetson-thor", f"tensor cores (as Orin's by `mma.sync`), {_ANSWERS}"),
        multiprocessors=20,
        clock=1.575e9,
        cache=32 << 20,
        shared=228 << 10,
        blocks=24,
        **_TEGRA,
    ),
    "rtx-4090": _known(
        *("rtx-4090", "gap (1 µs)"),
        multiprocessors=128,
        clock=2.52e9,
        tensor=512,
        shared=100 << 10,
        warps=48,
        blocks=24,
        cache=72 << 20,
        l2_latency=273,
        latency=542,
        gap=1e-6,
    ),
    "h100": Gpu(
        "H100 SXM",
        memory=80e9,
        bandwidth=3350e9,
        multiprocessors=132,
        clock=1.83e9,
        tensor=1288,  # 62.9 % of what `wgmma` does, as Luo et al. measured
        shared=228 << 10,
        warps=64,
        blocks=32,
        cache=50 << 20,
        l2_latency=263,
        latency=479,
        gap=1e-6,
        assumed="gap (1 µs)",
    ),
}
