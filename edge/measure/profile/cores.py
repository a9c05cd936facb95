"""What a core does in a cycle in the inner loops of the kernels: predicted by llvm-mca, on none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
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
# cycles
# LLVM 19.1.7; aarch64-linux-gnu-g++ 12.2.0
_NEOVERSE_N1 = Rates(
    one_int4_g32=8.45,
    one_int4_g128=11,
    one_ternary=9.82,
    one_int8=10.2,
    many_g32=14.5,
    many_g128=20.2,
    many_int8=11.7,
    scores_float16=4.54,
    scores_float32=7.43,
    scores_int8=10.6,
    scores_int16=3.97,
    values_float16=4.54,
    values_float32=7.87,
    values_int8=10.6,
    values_int16=3.97,
    halves=1.97,
    nibbles=9.08,
    powers=0.38,
)
_NEOVERSE_N2 = Rates(
    one_int4_g32=8.52,
    one_int4_g128=11,
    one_ternary=9.94,
    one_int8=10.5,
    many_g32=20.9,
    many_g128=35.6,
    many_int8=17.9,
    scores_float16=4.54,
    scores_float32=7.44,
    scores_int8=10.6,
    scores_int16=3.97,
    values_float16=4.54,
    values_float32=7.88,
    values_int8=10.6,
    values_int16=3.97,
    halves=1.97,
    nibbles=9.09,
    powers=0.38,
)
_NEOVERSE_V1 = Rates(
    one_int4_g32=17.4,
    one_int4_g128=22.1,
    one_ternary=20.1,
    one_int8=20.9,
    many_g32=30.3,
    many_g128=41,
    many_int8=24.4,
    scores_float16=9.04,
    scores_float32=14.4,
    scores_int8=21.1,
    scores_int16=7.86,
    values_float16=9.03,
    values_float32=15.5,
    values_int8=20.9,
    values_int16=7.86,
    halves=3.91,
    nibbles=12.1,
    powers=0.773,
)
_NEOVERSE_V2 = Rates(
    one_int4_g32=17.2,
    one_int4_g128=22.1,
    one_ternary=19.9,
    one_int8=20.9,
    many_g32=42.1,
    many_g128=71.4,
    many_int8=35.8,
    scores_float16=7.9,
    scores_float32=14.6,
    scores_int8=20.9,
    scores_int16=7.86,
    values_float16=7.9,
    values_float32=15.5,
    values_int8=20.8,
    values_int16=7.86,
    halves=3.87,
    nibbles=15.8,
    powers=0.755,
)
_APPLE_M1 = Rates(
    one_int4_g32=13.1,
    one_int4_g128=16.6,
    one_ternary=15.2,
    one_int8=15.6,
    many_g32=22.9,
    many_g128=26.8,
    many_int8=19.8,
    scores_float16=8.94,
    scores_float32=11,
    scores_int8=15.6,
    scores_int16=7.86,
    values_float16=8.91,
    values_float32=11.1,
    values_int8=14.2,
    values_int16=7.82,
    halves=5.02,
    nibbles=18.8,
    powers=0.657,
)
_APPLE_A16 = Rates(
    one_int4_g32=13.1,
    one_int4_g128=16.6,
    one_ternary=15.2,
    one_int8=15.6,
    many_g32=31.9,
    many_g128=52.1,
    many_int8=28.8,
    scores_float16=8.94,
    scores_float32=11,
    scores_int8=15.6,
    scores_int16=7.86,
    values_float16=8.91,
    values_float32=11.1,
    values_int8=14.2,
    values_int16=7.82,
    halves=5.02,
    nibbles=18.8,
    powers=0.657,
)
CORES: dict[str, Core] = {
    "cortex-a76": Core("neon-dotprod", "neoverse-n1", _NEOVERSE_N1),
    "cortex-a78": Core("neon-dotprod", "neoverse-n1", _NEOVERSE_N1),
    "cortex-a720": Core("neon-i8mm", "neoverse-n2", _NEOVERSE_N2),
    "cortex-x1": Core("neon-dotprod", "neoverse-v1", _NEOVERSE_V1),
    "cortex-x3": Core("neon-i8mm", "neoverse-v2", _NEOVERSE_V2),
    "cortex-x4": Core("neon-i8mm", "neoverse-v2", _NEOVERSE_V2),
    "apple-m1": Core("neon-dotprod", "apple-m1", _APPLE_M1),
    "apple-m2": Core("neon-i8mm", "apple-a16", _APPLE_A16),
}
# end
