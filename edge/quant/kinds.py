"""The kinds of quantization, one declaration each; everything else about a kind is derived from it.

Another package adds its own with `register_scheme` in a module that its entry point of the group
`minicpm_edge.plugins` names (`edge.system.registry`).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import EdgeError
from edge.quant.layout import F16, F32, I4, I8, T2, Layout
from edge.quant.rules import Rule, above_minimum, one_sided, symmetric, ternary
from edge.system.registry import Registry


@dataclass(frozen=True)
class SchemeKind:
    """A kind of quantization: weight = scale x (code - zero), or scale x code + minimum.

    name: as in `int4-g32`, letters and digits. layout: the bytes that it is packed into; a code is stored as
    the field that weighs the same. low, high: smallest and largest code, counted from zero. zero: the code of
    a weight of zero, where there is no minimum. group: columns that share a scale by default, 0 for one per
    row. rule: how weights are rounded; None for floats. minimum_rule: the same with a minimum per group, None
    if it has none. rms: root mean square of random codes around zero. trained: whether a network has to be
    trained for it, so that weights of any other are refused and not rounded. head: the name of what embedding
    and head become beside it in random weights; None for the same.
    """

    name: str
    layout: Layout
    low: int = 0
    high: int = 0
    zero: int = 0
    group: int = 0
    rule: Rule | None = None
    minimum_rule: Rule | None = None
    rms: float = 0.0
    trained: bool = False
    head: str | None = None

    def __post_init__(self) -> None:
        if not self.name.isalnum():
            raise EdgeError(f"The name of a quantization has only letters and digits, not '{self.name}'.")
        if self.is_float != (self.layout.floats is not None):
            raise EdgeError(
                f"The quantization '{self.name}' does not fit the layout {self.layout.name}: codes need a "
                "rule, and floats have none."
            )
        first, last = self.low + self.layout.zero, self.high + self.layout.zero
        if not self.is_float and not self.layout.first <= first <= last <= self.layout.last:
            raise EdgeError(
                f"The layout {self.layout.name} can't hold codes {self.low} to {self.high} of the "
                f"quantization '{self.name}'; choose a wider layout."
            )
        if self.minimum_rule is not None and not self.layout.minimum:
            raise EdgeError(
                f"The layout {self.layout.name} has no minimums, which the quantization '{self.name}' may "
                "have; choose another layout."
            )

    @property
    def is_float(self) -> bool:
        """True for kinds without codes."""
        return self.rule is None

    @property
    def bits(self) -> int:
        """Bits that a code needs."""
        return self.layout.bits if self.is_float else (self.high - self.low).bit_length()


KINDS: Registry[SchemeKind] = Registry("quantization")


def register_scheme(kind: SchemeKind) -> SchemeKind:
    """Add a kind of quantization and return it; EdgeError if its name is taken."""
    return KINDS.register(kind.name, kind)


register_scheme(SchemeKind("f32", F32))
register_scheme(
    SchemeKind(
        "int4",
        I4,
        low=-8,
        high=7,
        zero=8,
        group=32,
        rule=one_sided(8),
        minimum_rule=above_minimum(15),
        rms=4.637,
    )
)
register_scheme(SchemeKind("int8", I8, low=-127, high=127, group=32, rule=symmetric(127), rms=73.9))
register_scheme(
    SchemeKind(
        "ternary",
        T2,
        low=-1,
        high=1,
        zero=1,
        group=128,
        rule=ternary,
        rms=0.8165,
        trained=True,
        head="int4",
    )
)
register_scheme(SchemeKind("f16", F16))
