"""What a core does in a cycle in the inner loops of the kernels: predicted by llvm-mca, on none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Multiply-adds of one core per cycle; of `halves` (float16 to float32), `nibbles` (4 to 8 bits) and
    `powers` (of two), elements.

    one_*: weights of one token, as they come from memory; many_*: of many tokens, from unpacked weights, by
    the columns of a group. scores_*, values_*: attention, by what it reads; `float32` is float16 converted
    beforehand, as many query rows take it. Everything that is read is in the nearest cache.
    """

    one_int4_g32: float
    one_int4_g128: float
    one_ternary: float
    one_int8: float
    many_g32: float
    many_g128: float
    many_int8: float
    scores_float16: float
    scores_float32: float
    scores_int8: float
    scores_int16: float
    values_float16: float
    values_float32: float
    values_int8: float
    values_int16: float
    halves: float
    nibbles: float
    powers: float


@dataclass(frozen=True)
class Core:
    """tier: the best tier of the kernels for it. model: LLVM's model of a processor that stands for it.

    tile_rows: query rows that read float16 as it is; more of them have it converted first.
    """

    tier: str
    model: str
    rates: Rates
    tile_rows: int = 4


# Written by `python -m scripts.cycles --write`; scripts/cycles/cores.py says what each model stands for.
CORES: dict[str, Core] = {
    # cycles
    # LLVM 19.1.7; aarch64-linux-gnu-g++ 12.2.0
    "cortex-a76": Core(
        "neon-dotprod",
        "neoverse-n1",
        Rates(
            8.45,
            11,
            9.82,
            10.2,
            14.5,
            20.2,
            11.7,
            4.54,
            7.43,
            10.6,
            3.97,
            4.54,
            7.87,
            10.6,
            3.97,
            1.97,
            9.08,
            0.38,
        ),
    ),
    "cortex-a78": Core(
        "neon-dotprod",
        "neoverse-n1",
        Rates(
            8.45,
            11,
            9.82,
            10.2,
            14.5,
            20.2,
            11.7,
            4.54,
            7.43,
            10.6,
            3.97,
            4.54,
            7.87,
            10.6,
            3.97,
            1.97,
            9.08,
            0.38,
        ),
    ),
    "cortex-a720": Core(
        "neon-i8mm",
        "neoverse-n2",
        Rates(
            8.52,
            11,
            9.94,
            10.5,
            20.9,
            35.6,
            17.9,
            4.54,
            7.44,
            10.6,
            3.97,
            4.54,
            7.88,
            10.6,
            3.97,
            1.97,
            9.09,
            0.38,
        ),
    ),
    "cortex-x1": Core(
        "neon-dotprod",
        "neoverse-v1",
        Rates(
            17.4,
            22.1,
            20.1,
            20.9,
            30.3,
            41,
            24.4,
            9.04,
            14.4,
            21.1,
            7.86,
            9.03,
            15.5,
            20.9,
            7.86,
            3.91,
            12.1,
            0.773,
        ),
    ),
    "cortex-x3": Core(
        "neon-i8mm",
        "neoverse-v2",
        Rates(
            17.2,
            22.1,
            19.9,
            20.9,
            42.1,
            71.4,
            35.8,
            7.9,
            14.6,
            20.9,
            7.86,
            7.9,
            15.5,
            20.8,
            7.86,
            3.87,
            15.8,
            0.755,
        ),
    ),
    "cortex-x4": Core(
        "neon-i8mm",
        "neoverse-v2",
        Rates(
            17.2,
            22.1,
            19.9,
            20.9,
            42.1,
            71.4,
            35.8,
            7.9,
            14.6,
            20.9,
            7.86,
            7.9,
            15.5,
            20.8,
            7.86,
            3.87,
            15.8,
            0.755,
        ),
    ),
    "apple-m1": Core(
        "neon-dotprod",
        "apple-m1",
        Rates(
            13.1,
            16.6,
            15.2,
            15.6,
            22.9,
            26.8,
            19.8,
            8.94,
            11,
            15.6,
            7.86,
            8.91,
            11.1,
            14.2,
            7.82,
            5.02,
            18.8,
            0.657,
        ),
    ),
    "apple-m2": Core(
        "neon-i8mm",
        "apple-a16",
        Rates(
            13.1,
            16.6,
            15.2,
            15.6,
            31.9,
            52.1,
            28.8,
            8.94,
            11,
            15.6,
            7.86,
            8.91,
            11.1,
            14.2,
            7.82,
            5.02,
            18.8,
            0.657,
        ),
    ),
    # end
}
