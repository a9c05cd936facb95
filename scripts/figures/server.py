"""The tables of docs/server.md and docs/constraints.md: what is aimed at, and what each model reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .declaration import Document, Lines, Table, percent

_MEMORY, _ADDED, _FOUR, _FIRST, _BACK, _PEER = 130e6, 225.0, 2.5, 0.15, 1.0, 2.2
_MASK = 0.05
Cell = Callable[[Document], str]
"""What stands below a model, from its part of a document."""


def _judged(words: str, met: bool) -> str:
    return words if met else f"{words}: missed"


def _between(quartiles: Sequence[float], digits: int, unit: str) -> str:
    """The median, and the quartiles around it."""
    low, middle, high = (f"{value:.{digits}f}" for value in quartiles)
    return f"{middle} {unit} ({low} to {high})"


def _memory(found: Document) -> str:
    idle = found["memory"]["idle_private_bytes"]
    return _judged(f"{idle / 1e6:.0f} MB", idle <= _MEMORY)


def _added(found: Document) -> str:
    added = found["one"]["added_microseconds"]["server beyond pass"]
    return _judged(_between(added, 0, "µs"), added[1] <= _ADDED)


def _beyond_stream(found: Document) -> str:
    return _between(found["one"]["added_microseconds"]["server beyond stream"], 0, "µs")


def _token(found: Document) -> str:
    return _between(found["one"]["milliseconds"]["pass"], 2, "ms")


def _four(found: Document) -> str:
    ratio = found["streams"]["ratio"]
    return _judged(_between(ratio, 2, "x"), ratio[1] >= _FOUR)


def _rates(found: Document) -> str:
    alone, four = (found["streams"][f"{count}_tokens_per_second"][1] for count in ("one", "four"))
    return f"{alone:.0f} / {four:.0f} tokens/s"


def _first(found: Document) -> str:
    p95 = found["first"]["p95_seconds"]
    return _judged(f"{1000 * p95:.0f} ms", p95 <= _FIRST)


def _first_median(found: Document) -> str:
    return f"{1000 * found['first']['p50_seconds']:.0f} ms"


def _back(found: Document) -> str:
    part = found["restart"]
    most = part["most_back_seconds"]
    whole = part["cached_tokens"] >= part["tokens"] - 1
    words = f"{part['back_seconds'][1]:.2f} s, {most:.2f} s at most"
    return _judged(f"{words}; {part['tokens']:,} tokens", most < _BACK and whole)


def _computed(found: Document) -> str:
    part = found["restart"]
    return f"{part['computed_seconds']:.0f} s for {part['computed_tokens']:,} tokens"


def _peer(found: Document) -> str:
    ratio = found["peer"]["ratio"]
    return _judged(_between(ratio, 2, "x"), ratio[1] >= _PEER)


def _peer_rates(found: Document) -> str:
    rates = {name: each[1] for name, each in found["peer"]["tokens_per_second"].items()}
    ours = rates.pop("edge")
    return f"{ours:.0f} / {max(rates.values()):.0f} tokens/s"


_ROWS: tuple[tuple[str, str, int, Cell], ...] = (
    ("private memory of all processes, idle", "130 MB", 0, _memory),
    ("HTTP, JSON and scheduling of a token, one stream", "225 µs", 0, _added),
    ("the same beyond `model.stream` in a process", "", 0, _beyond_stream),
    ("a token's bare pass, sampling included", "", 0, _token),
    ("four streams, of one", "2.5 x", 0, _four),
    ("one stream / four streams in total", "", 0, _rates),
    ("first token of 32 beside three streams, p95", "150 ms", 0, _first),
    ("the same, median", "", 0, _first_median),
    ("first token of a long conversation after kill -9 and a start", "1 s", 0, _back),
    ("the same, computed", "", 0, _computed),
    ("four streams in turn with llama.cpp's server", "2.2 x", 1, _peer),
    ("ours / llama.cpp's, in total", "", 1, _peer_rates),
)
"""What, the target, the place of the document, what was reached."""


def server(*documents: Document | None) -> Lines:
    """Every target for each model; a document that a machine lacks leaves its targets unmeasured."""
    models = list(dict.fromkeys(name for each in documents if each for name in each["models"]))
    lines: Lines = [["what", "target", *(f"`{name}`" for name in models)]]
    for what, goal, place, cell in _ROWS:
        document = documents[place]
        reached = ["not measured" if document is None else cell(document["models"][name]) for name in models]
        lines.append([what, goal, *reached])
    return lines


def _share(found: Document) -> str:
    share = found["mask_share_of_a_token"]
    return _judged(percent(share, 1), share <= _MASK)


def _mask(found: Document) -> str:
    median, p99 = (1e6 * found["mask_seconds"][name] for name in ("median", "p99"))
    return f"{median:.0f} µs, {p99:.0f} µs"


def _valid(found: Document) -> str:
    valid, whole = found["valid_with_form"], found["whole_with_form"]
    return _judged(f"{valid} of {whole}", valid == whole)


def _compiled(found: Document) -> str:
    opened, rigid = (1e3 * found["compile_seconds"][name] for name in ("open", "rigid"))
    return f"{opened:.1f} ms, {rigid:.1f} ms"


_FORMS: tuple[tuple[str, str, Cell], ...] = (
    ("masks, of a token's time", "5 %", _share),
    ("mask of a token, median and p99", "", _mask),
    ("whole answers with the form that are valid", "all", _valid),
    ("answers asked for", "", lambda found: str(found["answers"])),
    ("answers without the form that are valid", "", lambda found: str(found["valid_without_form"])),
    ("compiling a schema, open and rigid", "", _compiled),
    ("preparing the vocabulary, once a model", "", lambda found: f"{found['vocabulary_seconds']:.2f} s"),
    (
        "rigid form, forced tokens together, of one by one",
        "",
        lambda found: f"{found['forced_speedup']:.2f} x",
    ),
)


def constraints(document: Document) -> Lines:
    models = document["models"]
    lines: Lines = [["what", "target", *(f"`{name}`" for name in models)]]
    for what, goal, cell in _FORMS:
        lines.append([what, goal, *(cell(found) for found in models.values())])
    return lines


TABLES = {
    "server": Table("docs/server.md", ("server", "server-peer"), server, keys=2, partial=True),
    "constraints": Table("docs/constraints.md", ("constraints",), constraints, keys=2),
}
