"""The tables of docs/training.md: comparisons, the speed of the loop, the options of a run."""

from __future__ import annotations

from math import isfinite

from edge.system.units import format_bytes
from edge.train.config import declared_options

from .declaration import Document, Lines, Table, percent

PAGE = "docs/training.md"
_LOSS = "held-out loss"


def lengths(document: Document) -> Lines:
    """A row for each number of steps; cosine, warmup-stable-decay of its own, and branched from one run."""
    losses = document["losses"]
    steps = sorted({int(name.split("-")[1]) for name in losses if name.startswith("cosine-")})
    lines: Lines = [["steps", "tokens", "cosine", "WSD, from scratch", "WSD, decay of one stable run"]]
    for count in steps:
        kinds = (f"{kind}-{count}" for kind in ("cosine", "scratch", "branch"))
        tokens = count * document["tokens_per_step"]
        lines.append([str(count), f"{tokens / 1e6:.2f} M", *(_mean(losses.get(kind)) for kind in kinds)])
    return lines


def decays(document: Document) -> Lines:
    """The same tokens with decays of several lengths and shapes, all from one stable run of each seed."""
    losses = document["losses"]
    longest = max(int(name.split("-")[1]) for name in losses if name.startswith("branch-"))
    usual = losses[f"branch-{longest}"]
    rows = {("exponential", 0.1): usual}
    for name, found in losses.items():
        kind, _, value = name.partition("-")
        if kind == "share":
            rows["exponential", float(value)] = found
        elif kind == "shape":
            rows[value, 0.1] = found
    lines: Lines = [["decay", "share of the steps", _LOSS, "above exponential, 10 %"]]
    for (shape, share), found in sorted(rows.items()):
        lines.append([shape, percent(share, 1), _mean(found), _above(found, usual)])
    return lines


def best_rates(document: Document) -> Lines:
    """Where the lowest mean loss is, by width, and how many steps of the grid it is from the narrowest's."""
    lines: Lines = [["parametrisation", "width", "best learning rate", "of single seeds", "moved by"]]
    for kind, widths in _parametrisations(document):
        narrowest = next(iter(widths.values()))
        for width, found in widths.items():
            grid = list(found["losses"])
            moved = grid.index(found["best"]) - grid.index(narrowest["best"])
            seeds = ", ".join(found["best_by_seed"])
            lines.append([kind, width, found["best"], seeds, f"{moved:+d}" if moved else "0"])
    return lines


def losses_by_rate(document: Document) -> Lines:
    """Mean losses over the seeds."""
    kinds = _parametrisations(document)
    rates = list(next(iter(kinds[0][1].values()))["losses"])
    lines: Lines = [["parametrisation", "width", *(f"rate {each}" for each in rates)]]
    for kind, widths in kinds:
        for width, found in widths.items():
            cells = (found["losses"].get(each) for each in rates)
            lines.append([kind, width, *("diverged" if each is None else f"{each:.4f}" for each in cells)])
    return lines


def _parametrisations(document: Document) -> list[tuple[str, Document]]:
    names = {"mup": "muP", "plain": "none"}
    return [(names[kind], document["kinds"][kind]) for kind in names if kind in document["kinds"]]


_TERNARY = {
    "float": "float, all steps",
    "share-0": "ternary, rounded after training",
    "share-0.2": "ternary on the last 20 %",
    "share-0.4": "ternary on the last 40 %",
    "share-0.6": "ternary on the last 60 %",
    "warmed-0.4": "ternary on the last 40 %, after the float run's decay, warmed up again",
    "not-warmed-0.4": "ternary on the last 40 %, after the float run's decay, at the rate that it ended with",
    "row-0.4": "ternary on the last 40 %, a scale per row",
    "scratch-g32": "ternary from the first step",
    "scratch-row": "ternary from the first step, a scale per row",
}
"""Groups of 32 where nothing is said."""


def ternary(document: Document) -> Lines:
    """Final losses of the ways to ternary weights, and how far they are above the float run."""
    losses = document["losses"]
    lines: Lines = [["weights", _LOSS, "above float"]]
    for name, words in _TERNARY.items():
        if name in losses:
            found = losses[name]
            lines.append([words, _mean(found), "" if name == "float" else _above(found, losses["float"])])
    return lines


def multi_token(document: Document) -> Lines:
    """Main and second losses by the layer's weight, and how often its guess is right."""
    seconds, accepted = document["second_token"], document["acceptance"]
    lines: Lines = [
        [
            "weight of the layer",
            _LOSS,
            "above none",
            "loss of the second token",
            "guess is the network's own",
            "guess is the text's",
            "network is the text's",
        ]
    ]
    without = document["losses"]["0.0"]
    for weight, found in document["losses"].items():
        shares = accepted.get(weight)
        known = [percent(shares[name], 1) for name in ("own", "text", "network")] if shares else [""] * 3
        second = _mean(seconds[weight]) if weight in seconds else ""
        above = "" if weight == "0.0" else _above(found, without)
        lines.append(["none" if weight == "0.0" else weight, _mean(found), above, second, *known])
    return lines


def long_stage(document: Document) -> Lines:
    """Questions answered rightly, before the long stage and after it with sparse or dense attention."""
    words = {"short": "short stage alone", "sparse": "long stage, sparse", "dense": "long stage, dense"}
    stages = {words[name]: document["stages"][name] for name in words if name in document["stages"]}
    kinds = list(next(iter(next(iter(stages.values())).values())))
    lines: Lines = [["trained", "tokens", *(f"read {kind}" for kind in kinds)]]
    for stage, lengths in stages.items():
        for length, found in lengths.items():
            lines.append([stage, length, *(percent(found[kind], 1) for kind in kinds)])
    return lines


def tiny(document: Document) -> Lines:
    """Perplexities side by side."""
    found = document["perplexity"]
    lines: Lines = [["weights of the layers", "perplexity", "above float", "tokens scored"]]
    for name in ("float", "int8", "int4", "ternary"):
        if name in found:
            value, base = found[name]["perplexity"], found["float"]["perplexity"]
            above = "" if name == "float" else percent(value / base - 1, 1)
            lines.append([name, f"{value:.2f}", above, str(found[name]["tokens"])])
    return lines


def tiny_exports(document: Document) -> Lines:
    """What each export's own runtime said beside the stored logits."""
    sizes = document["bytes"]
    lines: Lines = [["export", "size", "checked in", "KL divergence", "limit", "same top token", "check"]]
    for target, found in document["checks"].items():
        lines.append(
            [
                target,
                format_bytes(sizes[target]),
                f"{found['runtime']} {found['version']}",
                f"{found['divergence']:.1e}",
                f"{found['limit']:.0e}",
                percent(found["agreement"]),
                "passed" if found["passed"] else "**failed**",
            ]
        )
    return lines


def tiny_stages(document: Document) -> Lines:
    """Tokens, speed and held-out losses of the two stages."""
    stages = document["stages"]
    held = sorted({name for found in stages.values() for name in found if name.startswith("held_out/")})
    titles = [f"{_LOSS}, {name.removeprefix('held_out/')}" for name in held]
    lines: Lines = [["stage", "tokens", "tokens/s", *titles]]
    for name, found in stages.items():
        cells = [f"{found['tokens'] / 1e6:.2f} M", f"{found['tokens_per_second']:.0f}"]
        lines.append([name, *cells, *(f"{found[each]:.4f}" if each in found else "" for each in held)])
    return lines


def speed(document: Document) -> Lines:
    """The three loops, in turn; the ratio is the median over the rounds."""
    words = {
        "loop": "`edge train run`",
        "plain": "the same network, a tutorial's loop",
        "gpt": "the same shape, nanochat's style",
    }
    lines: Lines = [["loop", "tokens/s", "of the measured peak", "time of it, in ours"]]
    for name, text in words.items():
        ratio = document["loop_over"].get(name)
        lines.append(
            [
                text,
                f"{document['tokens_per_second'][name]:.0f}",
                percent(document["utilisation"][name]),
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    return lines


def _mean(found: Document | None) -> str:
    """Mean and standard deviation over the seeds; empty for what was not run."""
    if found is None:
        return ""
    if not isfinite(found["mean"]):
        return "diverged"
    spread = "" if found["deviation"] is None else f" ± {found['deviation']:.4f}"
    return f"{found['mean']:.4f}{spread}"


def _above(found: Document, base: Document) -> str:
    """The difference of two means."""
    difference = found["mean"] - base["mean"]
    return f"{difference:+.4f}" if isfinite(difference) else ""


TABLES = {
    "training-wsd": Table(PAGE, ("training-wsd",), lengths, picture="training-wsd.png"),
    "training-decays": Table(PAGE, ("training-wsd",), decays, keys=2),
    "training-mup": Table(PAGE, ("training-mup",), best_rates, keys=2),
    "training-mup-losses": Table(PAGE, ("training-mup",), losses_by_rate, keys=2),
    "training-ternary": Table(PAGE, ("training-ternary",), ternary, picture="training-ternary.png"),
    "training-multi-token": Table(
        PAGE, ("training-multi-token",), multi_token, picture="training-multi-token.png"
    ),
    "training-long": Table(PAGE, ("training-long",), long_stage, keys=2),
    "training-tiny": Table(PAGE, ("training-tiny",), tiny),
    "training-tiny-exports": Table(PAGE, ("training-tiny",), tiny_exports),
    "training-tiny-stages": Table(PAGE, ("training-tiny",), tiny_stages, picture="training-tiny.png"),
    "training-speed": Table(PAGE, ("training-speed",), speed),
}


def options() -> str:
    """The table of all options of a run's file, as they are declared."""
    lines = ["| option | default | values | what it does |", "| --- | --- | --- | --- |"]
    for each in declared_options():
        default = f"`{each.default}`" if each.default not in ("", "none", "must be given") else each.default
        values = "" if each.name == "model.preset" else ", ".join(f"`{value}`" for value in each.choices)
        lines.append(f"| `{each.name}` | {default} | {values} | {each.help} |")
    return "\n".join(lines) + "\n"
