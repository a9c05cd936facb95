"""The option that says what guesses."""

from __future__ import annotations

from dataclasses import dataclass

from edge.system.options import option


@dataclass(frozen=True)
class SpeculationOptions:
    """speculate: see `edge.engine.speculative.opening`."""

    speculate: str = option(
        "auto",
        "What guesses how answers go on, which makes them faster and changes none. lookup: what came before; "
        "DRAFT: a draft network or a smaller model; lookup+DRAFT: both.",
        metavar="auto|off|lookup|DRAFT|lookup+DRAFT",
    )
