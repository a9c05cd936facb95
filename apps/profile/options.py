"""The options of `edge profile` beside those of `edge.measure.profile`: what to plan for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from edge.engine.speculative.options import SpeculationOptions
from edge.executors.options import RunOptions
from edge.system.options import option, same

if TYPE_CHECKING:
    from edge.measure.profile.plan import PlannedDevice


@dataclass(frozen=True)
class PlanOptions:
    """A plan for a device, without a run."""

    plan: bool = option(False, "Predict memory and speed from the shapes alone.")
    context: int | None = same(RunOptions, "context")
    memory: str | None = option(None, "Memory of the device.", metavar="8G")
    device: str | None = option(None, "A known device; an unknown name lists them.", metavar="NAME")
    bandwidth: float | None = option(
        None, "Memory bandwidth, as what is to run the model reads.", metavar="GB/s", least=0.001
    )
    int8_tops: float | None = option(None, "Dense int8 operations.", metavar="TOPS", least=0.001)

    def planned_device(self) -> PlannedDevice | None:
        """The device that was named or described; None if neither."""
        from edge.measure.profile.devices import device
        from edge.measure.profile.plan import PlannedDevice

        if self.device is not None:
            known = device(self.device)
            bandwidth, cpu = self.bandwidth or known.bandwidth_gb_s, known.cpu
            if cpu is not None and self.int8_tops is not None:
                sentence = f"{known.title} runs on its cores, whose speed is known: leave it out"
                raise typer.BadParameter(sentence, param_hint="'--int8-tops'")
            if cpu is not None and self.bandwidth is not None:
                cpu = replace(cpu, read_share=1.0, assumption="given, as what the cores read")
            return PlannedDevice(known.title, bandwidth, self.int8_tops or known.int8_tops, known.source, cpu)
        if self.bandwidth is not None:
            return PlannedDevice("the device described", self.bandwidth, self.int8_tops, "given")
        if self.int8_tops is not None:
            raise typer.BadParameter("needs --bandwidth or --device beside it", param_hint="'--int8-tops'")
        return None


@dataclass(frozen=True)
class GuessOptions:
    """What guesses are worth, on real prompts."""

    speculate: str = same(SpeculationOptions, "speculate")
    prompts: str | None = option(
        None, "A prompt on every line, or between lines of ---; by default four of our own.", metavar="FILE"
    )
