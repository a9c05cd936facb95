"""Which weights to open and how to quantize them: one frozen set of options for all that open models."""

from __future__ import annotations

from dataclasses import dataclass

from edge.system.options import check_options, option


@dataclass(frozen=True)
class SourceOptions:
    """See the fields' own help, and `edge.hub.resolve.open_model`."""

    quantize: str | None = option(
        None,
        "Quantize to this: int4, int4-g128, int8, ternary, f16, source; by default what the file has, "
        "int4 for float files.",
    )
    head: str | None = option(None, "Quantization of embedding and output head, by the same names.")
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    offline: bool = option(False, "Never use the network.")
    verify: bool = option(False, "Recompute the checksums of the converted model.")

    def __post_init__(self) -> None:
        check_options(self)
