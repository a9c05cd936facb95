"""A kind of quantization that kernels and targets have not heard of: what another package would register."""

from __future__ import annotations

from edge.quant.kinds import SchemeKind, register_scheme
from edge.quant.layout import I4, Layout
from edge.quant.rules import above_minimum, symmetric
from edge.quant.scheme import QuantScheme

# -2..2 times a scale, in the bytes of int4.
TOY = register_scheme(
    SchemeKind(
        "toy5",
        I4,
        low=-2,
        high=2,
        group=64,
        rule=symmetric(2),
        minimum_rule=above_minimum(4),
        rms=2**0.5,
    )
)
SCHEMES = [QuantScheme("toy5", 64), QuantScheme("toy5"), QuantScheme("toy5", 32, minimum=True)]

# Bytes above a minimum, in a layout that only an executor of its own would compute on.
WIDE_LAYOUT = Layout("x8.n16k4", 8, "linear.x8", None, last=255, zero=128, minimum=True)
WIDE = register_scheme(
    SchemeKind(
        "toy255",
        WIDE_LAYOUT,
        low=-127,
        high=127,
        group=32,
        rule=symmetric(127),
        minimum_rule=above_minimum(254),
        rms=73.9,
    )
)
WIDE_SCHEME = QuantScheme("toy255", 32, minimum=True)
