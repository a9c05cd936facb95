"""Pictures of runs: losses and learning rates over tokens, several runs in one picture.

Needs matplotlib (extra `train`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import TrainingError
from edge.formats.atomic import write_failure, write_file
from edge.train.metrics import read_log

HELD_OUT = "held_out/"


def plot_runs(runs: Sequence[str | Path], out: str | Path, smooth: int = 1) -> None:
    """A PNG with the losses of runs' folders: while learning, and on held-out texts, and their learning
    rates.

    smooth: lines of the log of which a point of the learning curve is the mean. Raises TrainingError.
    """
    from matplotlib.figure import Figure

    short = [Path(run).name for run in runs]
    logs = {
        name if short.count(name) == 1 else str(run): read_log(run)
        for name, run in zip(short, runs, strict=True)
    }
    for name, lines in logs.items():
        for line in lines:
            if not all(isinstance(line.get(key), (int, float)) for key in ("tokens", "learning_rate")):
                raise TrainingError(
                    f"Step {line['step']} in the log of '{name}' is damaged; remove its line."
                )
        if not any(line.get("loss") is not None for line in lines):
            raise TrainingError(f"The log of '{name}' has no losses yet; let it run for some steps.")
    held_out = any(_names(lines) for lines in logs.values())
    figure = Figure(figsize=(7.5, 8.0 if held_out else 5.5), layout="constrained")
    losses, *others, rates = figure.subplots(3 if held_out else 2, 1, sharex=True)
    for number, (name, lines) in enumerate(logs.items()):
        color = f"C{number}"
        points = [line for line in lines if line.get("loss") is not None]
        losses.plot(
            _tokens(points), _smoothed([line["loss"] for line in points], smooth), color=color, label=name
        )
        rates.plot(_tokens(points), [line["learning_rate"] for line in points], color=color)
        for style, key in zip(("-", "--", ":", "-."), _names(lines), strict=False):
            found = [line for line in lines if key in line]
            label = f"{name}, {key.removeprefix(HELD_OUT)}"
            others[0].plot(
                _tokens(found), [line[key] for line in found], style, color=color, marker=".", label=label
            )
    losses.set_ylabel("loss, nats per token")
    losses.legend(fontsize="small")
    for axes in others:
        axes.set_ylabel("held out")
        axes.legend(fontsize="small")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("million tokens")
    for axes in (losses, *others, rates):
        axes.grid(alpha=0.3)
    save_figure(figure, out)


def save_figure(figure: Any, out: str | Path) -> None:
    """Write a figure as PNG. Raises TrainingError."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    try:
        write_file(out, data.getvalue())
    except OSError as error:
        raise TrainingError(write_failure(out, error)) from error


def _names(lines: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({key for line in lines for key in line if key.startswith(HELD_OUT)})


def _tokens(lines: Sequence[dict[str, Any]]) -> list[float]:
    return [line["tokens"] / 1e6 for line in lines]


def _smoothed(values: Sequence[float], size: int) -> list[float]:
    found = []
    for index in range(len(values)):
        window = values[max(index + 1 - size, 0) : index + 1]
        found.append(sum(window) / len(window))
    return found
