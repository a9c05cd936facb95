"""What the runs of one comparison came to: prints one JSON document, from the logs that they left."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edge.measure.profile.machine import cpu_name
from edge.train.folder import read_config
from edge.train.metrics import read_log

HELD_OUT = "held_out/texts"


def main() -> None:
    """Arguments: the comparison's name, and the folder of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=COMPARISONS)
    parser.add_argument("--runs", type=Path, default=Path("build/runs"))
    arguments = parser.parse_args()
    document = {"schema": 1, "cpu": cpu_name(), **COMPARISONS[arguments.name](arguments.runs)}
    print(json.dumps(document))


def wsd(runs: Path) -> dict[str, Any]:
    """Held-out losses by schedule and length, by the decay's share, and by its shape."""
    return {"losses": _by_kind(runs / "wsd", r"(.+)-\d+"), **_size(runs / "wsd" / "stable-0")}


def ternary(runs: Path) -> dict[str, Any]:
    """Held-out losses by how the ternary weights came to be."""
    return {"losses": _by_kind(runs / "ternary", r"(.+)-\d+"), **_size(runs / "ternary" / "float-0")}


def mup(runs: Path) -> dict[str, Any]:
    """Held-out losses by parametrisation, width and learning rate; the best rate of each seed and of their
    mean.

    Seeds may have rates of their own: the best mean is one of the rates that all have.
    """
    losses: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for folder in _folders(runs / "mup"):
        kind, width, rate, seed = folder.name.split("-")
        losses[kind, width][rate][seed] = _held_out(folder)
    found: dict[str, Any] = defaultdict(dict)
    for (kind, width), rates in sorted(losses.items(), key=lambda item: int(item[0][1])):
        ordered = dict(sorted(rates.items(), key=lambda item: float(item[0])))
        seeds = sorted({seed for by_seed in ordered.values() for seed in by_seed})
        means = {rate: statistics.mean(by_seed.values()) for rate, by_seed in ordered.items()}
        common = [rate for rate, by_seed in ordered.items() if len(by_seed) == len(seeds)]
        best = min(common, key=means.__getitem__)
        found[kind][width] = {
            "losses": {rate: None if mean == float("inf") else mean for rate, mean in means.items()},
            "seeds": {rate: len(by_seed) for rate, by_seed in ordered.items()},
            "best": best,
            "at_edge": best in (*list(means)[:1], *list(means)[-1:]),
            "best_by_seed": [
                min((by_seed[seed], rate) for rate, by_seed in ordered.items() if seed in by_seed)[1]
                for seed in seeds
            ],
        }
    both = found.pop("both", {})
    return {"kinds": {kind: {**both, **widths} for kind, widths in found.items()}}


def multi_token(runs: Path) -> dict[str, Any]:
    """Main loss and second token's loss by the layer's weight, and the acceptance."""
    folder = runs / "multi-token"
    seconds, accepted = defaultdict(list), defaultdict(list)
    for run in _folders(folder):
        weight = run.name.rsplit("-", 1)[0]
        line = read_log(run)[-1]
        if "held_out_second/texts" in line:
            seconds[weight].append(line["held_out_second/texts"])
        if (run / "acceptance.json").exists():
            accepted[weight].append(json.loads((run / "acceptance.json").read_text())["shares"])
    return {
        "losses": _by_kind(folder, r"(.+)-\d+"),
        "second_token": {weight: _spread(values) for weight, values in seconds.items()},
        "acceptance": {
            weight: {name: statistics.mean(each[name] for each in shares) for name in shares[0]}
            for weight, shares in accepted.items()
        },
        **_size(folder / "0.0-0"),
    }


def long(runs: Path) -> dict[str, Any]:
    """Recall by stage, length and kind of attention: the mean over the seeds."""
    scores: dict[str, list[dict[str, dict[str, float]]]] = defaultdict(list)
    for run in _folders(runs / "long"):
        if (run / "score.json").exists():
            scores[run.name.rsplit("-", 1)[0]].append(
                json.loads((run / "score.json").read_text())["accuracy"]
            )
    return {
        "seeds": len(next(iter(scores.values()))),
        "stages": {
            stage: {
                length: {kind: statistics.mean(each[length][kind] for each in found) for kind in kinds}
                for length, kinds in found[0].items()
            }
            for stage, found in scores.items()
        },
    }


def tiny(runs: Path) -> dict[str, Any]:
    """The stages of the end-to-end run, perplexities, and what the checks of the exports said."""
    folder = runs / "tiny"
    checks = _documents(folder, "check")
    return {
        "stages": {name: _stage(folder / name) for name in ("float", "ternary")},
        "perplexity": _documents(folder, "perplexity"),
        "checks": checks,
        "bytes": {target: _bytes(folder / target) for target in checks},
        "chat": (folder / "chat.txt").read_text(),
    }


def _stage(run: Path) -> dict[str, Any]:
    lines = read_log(run)
    speeds = [line["tokens_per_second"] for line in lines[1:]]
    return {
        **{
            name: value
            for name, value in lines[-1].items()
            if name.startswith(("held_out", "epochs")) or name == "tokens"
        },
        "tokens_per_second": statistics.median(speeds),
    }


def _documents(folder: Path, kind: str) -> dict[str, Any]:
    return {
        path.stem.removeprefix(f"{kind}-"): json.loads(path.read_text())
        for path in sorted(folder.glob(f"{kind}-*.json"))
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(run: Path) -> dict[str, Any]:
    config = read_config(run)
    return {"tokens_per_step": config["data"]["length"] * config["data"]["rows"]}


def _by_kind(folder: Path, pattern: str) -> dict[str, Any]:
    """Final held-out losses of the runs whose names match, by the pattern's group."""
    found = defaultdict(list)
    for run in _folders(folder):
        match = re.fullmatch(pattern, run.name)
        if match:
            found[match[1]].append(_held_out(run))
    return {kind: _spread(values) for kind, values in sorted(found.items())}


def _spread(values: Iterable[float]) -> dict[str, Any]:
    found = list(values)
    has_spread = len(found) > 1 and all(map(math.isfinite, found))
    deviation = statistics.stdev(found) if has_spread else None
    return {"mean": statistics.mean(found), "deviation": deviation, "runs": len(found), "values": found}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _held_out(run: Path) -> float:
    """The last held-out loss; infinite for a run that diverged."""
    lines = [line for line in read_log(run) if HELD_OUT in line]
    return float(lines[-1][HELD_OUT]) if lines else float("inf")


COMPARISONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "wsd": wsd,
    "mup": mup,
    "ternary": ternary,
    "multi-token": multi_token,
    "long": long,
    "tiny": tiny,
}


if __name__ == "__main__":
    main()
