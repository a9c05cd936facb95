"""Figures of known devices for planning; each names the document that it was taken from.

Bandwidths are the theoretical ones of the memory. int8_tops is dense (without structured sparsity), of the
part that would run the model: the GPU where there is one, None where the maker gives no figure for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import EdgeError


@dataclass(frozen=True)
class Device:
    """bandwidth_gb_s, int8_tops (a multiply-add is two), memory_gb: the largest model of the device."""

    title: str
    bandwidth_gb_s: float
    int8_tops: float | None
    memory_gb: float
    source: str


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
    "snapdragon-8-gen-3": Device(
        "Snapdragon 8 Gen 3 phone",
        76.8,
        None,
        24,
        "Qualcomm Snapdragon 8 Gen 3 product brief: LPDDR5X at 4800 MHz, four 16-bit channels",
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
