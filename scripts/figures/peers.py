"""The tables of docs/performance.md about other programs, from the documents of `scripts/bench_peers.py`."""

from __future__ import annotations

from collections.abc import Iterable

from .declaration import Document, Lines, Table, percent, ratio

PAGE = "docs/performance.md"
OURS, LLAMA, OPENVINO = "edge", "llama.cpp", "OpenVINO GenAI"


def rows_of(document: Document, **wanted: object) -> list[Document]:
    """The rows of a comparison with these values."""
    return [row for row in document["results"] if all(row[key] == value for key, value in wanted.items())]


def best(rows: Iterable[Document]) -> Document | None:
    """The fastest of some rows: llama.cpp runs with flash attention off and on."""
    return max(rows, key=lambda row: float(row["tokens_per_second"]), default=None)


def _speed(row: Document) -> str:
    share = f"; {percent(row['share'])} of the bandwidth" if "share" in row else ""
    return f"{row['tokens_per_second']:.3g} ({min(row['samples']):.3g} to {max(row['samples']):.3g}{share})"


def _beside(document: Document, words: str, **wanted: object) -> Lines:
    """A row for every peer: what, ours, the peer's, how many times as fast ours is."""
    lines: Lines = []
    for weights in dict.fromkeys(row["weights"] for row in document["results"]):
        found = rows_of(document, weights=weights, **wanted)
        ours = best(row for row in found if row["program"] == OURS)
        others = [row for row in found if row["program"] != OURS]
        for name in dict.fromkeys(_name(row) for row in others):
            peer = best(row for row in others if _name(row) == name)
            assert ours is not None and peer is not None
            lines.append([f"{words}, {weights}", name, _speed(ours), _speed(peer), f"{peer['ratio']:.2f} x"])
    return lines


def _name(row: Document) -> str:
    """A peer, without the setting of which the better one counts."""
    setting = row["setting"].replace("flash attention", "")
    return f"{row['program']}, {setting}" if setting else str(row["program"])


_HEADERS = ["tokens/s", "beside", "this decoder", "the other", "ratio"]


def prefill(document: Document) -> Lines:
    lines = [
        line
        for tokens in dict.fromkeys(row["tokens"] for row in document["results"])
        for line in _beside(document, f"prefill of {tokens}", tokens=tokens)
    ]
    return [_HEADERS, *lines]


def decode(int4: Document, ternary: Document) -> Lines:
    return [_HEADERS, *_beside(int4, "decode"), *_beside(ternary, "decode")]


def families(*documents: Document) -> Lines:
    """Decoding of other networks."""
    lines = [
        line
        for document in documents
        for line in _beside(document, document["model"].removeprefix("random:"))
    ]
    return [_HEADERS, *lines]


def depth(document: Document) -> Lines:
    """Speeds by depth; of ours also the share of the speed at 512 and the ratio to llama.cpp with float16."""
    depths = sorted({row["depth"] for row in document["results"]})
    peer = {
        depth: best(
            row for row in rows_of(document, program=LLAMA, depth=depth) if "float16" in row["setting"]
        )
        for depth in depths
    }
    kv_type = document["programs"][OURS]["kv_type"]
    lines: Lines = []
    for program in (OURS, LLAMA):
        for setting in dict.fromkeys(row["setting"] for row in rows_of(document, program=program)):
            rows = {row["depth"]: row for row in rows_of(document, program=program, setting=setting)}
            default = " (the default)" if program == OURS and f" {kv_type} " in setting else ""
            cells = [f"{'this decoder' if program == OURS else program}, {setting}{default}"]
            for depth in depths:
                row, other = rows.get(depth), peer[depth]
                if row is None:
                    cells.append("")
                    continue
                text = f"{row['tokens_per_second']:.3g}"
                if program == OURS and depth != depths[0]:
                    text += f" ({percent(row['tokens_per_second'] / rows[depths[0]]['tokens_per_second'])}"
                    text += f", {ratio(row['samples'], other['samples']):.1f} x)" if other else ")"
                cells.append(text)
            lines.append(cells)
    return [["decode, tokens/s", *(f"at {depth}" for depth in depths)], *lines]


def busy(document: Document) -> Lines:
    lines: Lines = []
    for count in sorted({row["busy_processes"] for row in document["results"]}):
        found = rows_of(document, busy_processes=count)
        ours = best(row for row in found if row["program"] == OURS)
        other = best(row for row in found if row["program"] != OURS)
        assert ours is not None and other is not None
        cells = [
            f"{row['tokens_per_second']:.3g} ({min(row['samples']):.3g} to {max(row['samples']):.3g})"
            + (f", {percent(row['share_of_alone'])} of alone" if count else "")
            for row in (ours, other)
        ]
        words = {0: "alone", 1: "beside one busy process", 2: "beside two"}[count]
        lines.append([words, *cells, f"{ratio(ours['samples'], other['samples']):.2f} x"])
    return [["tokens/s", "this decoder", "llama.cpp", "ratio"], *lines]


def streams(document: Document) -> Lines:
    """Tokens per second of all sequences together."""
    lines: Lines = []
    for count in dict.fromkeys(row["streams"] for row in document["results"]):
        found = rows_of(document, streams=count)
        ours = best(row for row in found if row["program"] == OURS)
        peer = best(row for row in found if row["program"] == LLAMA)
        assert ours is not None and peer is not None
        times = ratio(ours["samples"], peer["samples"])
        lines.append([str(count), _speed(ours), _speed(peer), f"{times:.2f} x"])
    return [["sequences at once", "this decoder", "llama.cpp", "ratio"], *lines]


TABLES = {
    "peers-prefill": Table(PAGE, ("peers-prefill",), prefill, keys=2),
    "peers-decode": Table(PAGE, ("peers-decode", "peers-ternary"), decode, keys=2),
    "families-decode": Table(PAGE, ("families-qwen3", "families-minicpm5"), families, keys=2),
    "peers-depth": Table(PAGE, ("peers-depth",), depth),
    "peers": Table(PAGE, ("peers",), busy),
    "peers-streams": Table(PAGE, ("peers-streams",), streams),
}
