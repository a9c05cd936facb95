"""Figures of known devices for planning; each names the document that it was taken from.

Bandwidths are the theoretical ones of the memory. int8_tops is dense (without structured sparsity), of the
part that would run the model: the GPU where there is one. Where `cpu` is given, the cores run it: which of
them, at which clock, and what share of the bandwidth they read. What they compute is predicted
(`edge.measure.profile.cores`).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import EdgeError
from edge.measure.profile.cores import CORES
from edge.measure.profile.cpu import Cluster, Cpu


@dataclass(frozen=True)
class Device:
    """bandwidth_gb_s, int8_tops (a multiply-add is two), memory_gb: the largest model of the device."""

    title: str
    bandwidth_gb_s: float
    int8_tops: float | None
    memory_gb: float
    source: str
    cpu: Cpu | None = None


# Texas Instruments SPRACV1B and SPRAD45A: STREAM on cores of its LPDDR4 and DDR4 boards moves 67 to 79 %
# of the memory's bandwidth. A core of a Raspberry Pi 5 copies 6.06 GB/s (tinymembench in
# github.com/geerlingguy/sbc-reviews/issues/58), which is 12.1 GB/s of reading and writing: 71 %.
_LPDDR = 0.7
# AnandTech, "The 2020 Mac Mini Unleashed": one core of an M1 reads 58 GB/s of 68.3.
_APPLE = 0.85
# Nobody's figure: twelve small cores have no use for a GPU's bandwidth.
_JETSON = 0.5


def _cpu(share: float, assumption: str, *clusters: tuple[int, str, float]) -> Cpu:
    """clusters: cores, their name, their clock in GHz."""
    return Cpu(
        tuple(Cluster(count, CORES[core], clock) for count, core, clock in clusters), share, assumption
    )


def _phone(*clusters: tuple[int, str, float]) -> Cpu:
    """The big cores: with the small ones as well, most work would wait for those."""
    return _cpu(_LPDDR, "assumed: 70 %, as STREAM reaches on other LPDDR4 boards", *clusters)


def _jetson(*clusters: tuple[int, str, float]) -> Cpu:
    return _cpu(_JETSON, "assumed: 50 %, since no published figure was found", *clusters)


def _apple(*clusters: tuple[int, str, float]) -> Cpu:
    return _cpu(_APPLE, "assumed: 85 %, as one core of an M1 reads", *clusters)


DEVICES: dict[str, Device] = {
    "jetson-agx-orin": Device(
        "Jetson AGX Orin 64GB",
        204.8,
        85,
        64,
        "NVIDIA Jetson AGX Orin Series Technical Brief v1.2: 204.8 GB/s; GPU 170 sparse INT8 TOPS, halved",
    ),
    "jetson-orin-nano": Device(
        "Jetson Orin Nano 8GB",
        68,
        20,
        8,
        "NVIDIA Jetson Orin Nano Series Data Sheet: 68 GB/s; 40 sparse INT8 TOPS, halved",
    ),
    "jetson-orin-nano-super": Device(
        "Jetson Orin Nano Super 8GB",
        102,
        33.5,
        8,
        "NVIDIA Jetson Orin Nano Super Developer Kit datasheet: 102 GB/s; 67 sparse INT8 TOPS, halved",
    ),
    "jetson-agx-orin-cpu": Device(
        "Jetson AGX Orin 64GB, CPU",
        204.8,
        None,
        64,
        "NVIDIA Jetson AGX Orin Series Technical Brief v1.2: 204.8 GB/s; 12 Cortex-A78AE at 2.2 GHz",
        _jetson((12, "cortex-a78", 2.2)),
    ),
    "jetson-orin-nano-cpu": Device(
        "Jetson Orin Nano 8GB, CPU",
        68,
        None,
        8,
        "NVIDIA Jetson Orin Nano Series Data Sheet: 68 GB/s; 6 Cortex-A78AE at 1.5 GHz",
        _jetson((6, "cortex-a78", 1.5)),
    ),
    "jetson-orin-nano-super-cpu": Device(
        "Jetson Orin Nano Super 8GB, CPU",
        102,
        None,
        8,
        "NVIDIA Jetson Orin Nano Super Developer Kit datasheet: 102 GB/s; 6 Cortex-A78AE at 1.7 GHz",
        _jetson((6, "cortex-a78", 1.7)),
    ),
    "jetson-thor": Device(
        "Jetson AGX Thor (T5000)",
        273,
        None,
        128,
        "NVIDIA Jetson Thor Series Modules Datasheet: 273 GB/s, 128 GB; it gives FP4 and FP8 rates only",
    ),
    "rtx-4090": Device(
        "GeForce RTX 4090",
        1008,
        660.6,
        24,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A: 1008 GB/s, 660.6 dense INT8 TOPS",
    ),
    "rtx-5090": Device(
        "GeForce RTX 5090",
        1792,
        838,
        32,
        "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix: 1792 GB/s, 838 dense INT8 TOPS",
    ),
    "raspberry-pi-5": Device(
        "Raspberry Pi 5",
        17.1,
        None,
        16,
        "Raspberry Pi 5 product brief: 4 Cortex-A76 at 2.4 GHz; LPDDR4X-4267 on 32 bits",
        _cpu(_LPDDR, "measured by others: 71 %, copying", (4, "cortex-a76", 2.4)),
    ),
    "snapdragon-855": Device(
        "Snapdragon 855 phone",
        34.1,
        None,
        12,
        "Qualcomm Snapdragon 855 product brief: LPDDR4X at 2133 MHz, four 16-bit channels; Cortex-A76: "
        "1 at 2.84, 3 at 2.42 GHz",
        _phone((1, "cortex-a76", 2.84), (3, "cortex-a76", 2.42)),
    ),
    "snapdragon-888": Device(
        "Snapdragon 888 phone",
        51.2,
        None,
        16,
        "Qualcomm Snapdragon 888 product brief: LPDDR5 at 3200 MHz, four 16-bit channels; 1 Cortex-X1 at "
        "2.84, 3 Cortex-A78 at 2.42 GHz",
        _phone((1, "cortex-x1", 2.84), (3, "cortex-a78", 2.42)),
    ),
    "tensor-g1": Device(
        "Google Tensor phone (Pixel 6)",
        51.2,
        None,
        12,
        "AnandTech, Google's Tensor inside of Pixel 6: LPDDR5 on four 16-bit channels, 51.2 GB/s; 2 "
        "Cortex-X1 at 2.8, 2 Cortex-A76 at 2.25 GHz",
        _phone((2, "cortex-x1", 2.8), (2, "cortex-a76", 2.25)),
    ),
    "snapdragon-8-gen-3": Device(
        "Snapdragon 8 Gen 3 phone",
        76.8,
        None,
        24,
        "Qualcomm Snapdragon 8 Gen 3 product brief: LPDDR5X at 4800 MHz, four 16-bit channels; 1 Cortex-X4 "
        "at 3.3, Cortex-A720: 3 at 3.2, 2 at 3.0 GHz",
        _phone((1, "cortex-x4", 3.3), (3, "cortex-a720", 3.2), (2, "cortex-a720", 3.0)),
    ),
    "snapdragon-8-elite": Device(
        "Snapdragon 8 Elite phone",
        84.8,
        None,
        24,
        "Qualcomm Snapdragon 8 Elite product brief: LPDDR5X at 5300 MHz, four 16-bit channels",
    ),
    "snapdragon-x-elite": Device(
        "Snapdragon X Elite laptop",
        136,
        None,
        64,
        "Qualcomm Snapdragon X Elite product brief: LPDDR5X, 136 GB/s",
    ),
    "apple-a15": Device(
        "Apple A15 phone",
        34.1,
        None,
        6,
        "AnandTech, The Apple A15 SoC Performance Review: 2 large cores at 3.24 GHz; LPDDR4X-4266 on 64 bits",
        _apple((2, "apple-m2", 3.24)),
    ),
    "apple-a16": Device(
        "Apple A16 phone",
        51.2,
        None,
        6,
        "LPDDR5-6400 on 64 bits, 2 large cores at 3.46 GHz: as benchmark programs say, Apple does not",
        _apple((2, "apple-m2", 3.46)),
    ),
    "apple-a17-pro": Device(
        "Apple A17 Pro phone",
        51.2,
        None,
        8,
        "LPDDR5-6400 on 64 bits, 2 large cores at 3.78 GHz: as benchmark programs say, Apple does not",
        _apple((2, "apple-m2", 3.78)),
    ),
    "apple-m1": Device(
        "Apple M1 laptop",
        68.3,
        None,
        16,
        "AnandTech, The 2020 Mac Mini Unleashed: 4 large cores at 3.2 GHz; LPDDR4X-4266 on 128 bits",
        _apple((4, "apple-m1", 3.2)),
    ),
    "apple-m2": Device(
        "Apple M2 laptop",
        100,
        None,
        24,
        "Apple newsroom, M2 announcement, June 2022: 100 GB/s; 4 large cores at 3.5 GHz, not from Apple",
        _apple((4, "apple-m2", 3.5)),
    ),
    "apple-m4": Device(
        "Apple M4 laptop", 120, None, 32, "Apple newsroom, M4 announcement, May 2024: 120 GB/s"
    ),
    "ryzen-ai-9-hx-370": Device(
        "Ryzen AI 9 HX 370 laptop",
        120,
        None,
        128,
        "AMD Ryzen AI 9 HX 370 product page: LPDDR5X-7500 on 128 bits",
    ),
    "core-ultra-7-258v": Device(
        "Core Ultra 7 258V laptop",
        136.5,
        None,
        32,
        "Intel Core Ultra 7 258V product page: 32 GB of LPDDR5X-8533 on 128 bits",
    ),
}


def device(name: str) -> Device:
    """The device of that name; EdgeError lists the names."""
    if name not in DEVICES:
        raise EdgeError(f"Unknown device '{name}'; known are {', '.join(DEVICES)}.")
    return DEVICES[name]
