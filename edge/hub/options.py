"""Which weights to open and how to quantize them: one frozen set of options for all that open models."""

from __future__ import annotations

from dataclasses import dataclass

from edge.system.options import check_options, option, same


def check_scheme(name: str) -> None:
    """Raise EdgeError if there is no quantization of that name."""
    from edge.quant.scheme import QuantScheme

    QuantScheme.chosen(name)


@dataclass(frozen=True)
class SourceOptions:
    """See the fields' own help, and `edge.hub.resolve.open_model`."""

    quantize: str | None = option(
        None,
        "Quantize to int4, int8, f16 or (a model that was trained so) ternary; the columns of a scale may be "
        "told, as in int4-g64 or int8-row. By default what the file has, int4 for float files.",
        metavar="SCHEME",
        former=("--group",),
        check=check_scheme,
    )
    head: str | None = option(
        None,
        "Quantization of embedding and output head; by default that of the rest, int8 in an export.",
        metavar="SCHEME",
        check=check_scheme,
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    offline: bool = option(False, "Never use the network.")
    verify: bool = option(
        False, "Recompute the checksums of the converted model; else its files' size and time are trusted."
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class HubOptions:
    """How a hub model is found, where weights are opened in a way of their own."""

    revision: str | None = same(SourceOptions, "revision")
    offline: bool = same(SourceOptions, "offline")
