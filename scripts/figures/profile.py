"""The tables of docs/profile.md: predictions for other devices, and how far they can be trusted."""

from __future__ import annotations

from .declaration import Document, Lines, Table

PAGE = "docs/profile.md"


def predictions(document: Document) -> Lines:
    """A row for each device; a cell has the speeds of a model in one quantization."""
    rows: dict[str, list[str]] = {}
    columns = list(dict.fromkeys((each["model"], each["quantize"]) for each in document["results"]))
    for each in document["results"]:
        speeds = {(speed["test"], speed["depth"]): speed for speed in each["speeds"]}
        shown = (_speed(speeds[key]) for key in (("prefill", 0), ("decode", 0), ("decode", 4096)))
        cell = " / ".join(shown) if each["fits"] else "does not fit"
        rows.setdefault(each["device"], []).append(cell)
    headers = [f"{model.removeprefix('random:minicpm4-').upper()} {quantize}" for model, quantize in columns]
    return [["predicted tokens/s", *headers], *([name, *cells] for name, cells in rows.items())]


def _speed(speed: Document) -> str:
    """Tokens per second, with a star where decoding is not bound by memory."""
    computed = speed["test"] == "decode" and speed["limit"] == "arithmetic"
    rate = speed["tokens_per_second"]
    return (f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}") + ("\\*" if computed else "")


def cycles(document: Document) -> Lines:
    """Multiply-adds per cycle in each core's best tier."""
    best = {each["core"]: each for each in document["results"]}
    shown = {
        "one_int4_g32": "int4, one token",
        "one_ternary": "ternary, one token",
        "many_g32": "int4, many tokens",
        "many_g128": "group 128, many tokens",
        "scores_float32": "attention, float16 KV",
        "scores_int8": "attention, int8 KV",
    }
    rows = [
        [name, each["tier"], each["model"], *(f"{each['loops'][loop]['per_cycle']:g}" for loop in shown)]
        for name, each in best.items()
    ]
    return [["core", "tier", "LLVM's model", *shown.values()], *rows]


def check(document: Document) -> Lines:
    """Predicted over measured, by test."""
    rows = []
    for result in document["results"]:
        for each in result["rows"]:
            what = f"{each['test']} of {each['tokens']} at depth {each['depth']}"
            figures = (
                f"{each['measured']:g}",
                f"{each['predicted']:g}",
                f"{each['ratio']:.2f}",
                each["limit"],
            )
            rows.append([result["quantize"], what, *figures])
    headers = ["measured, tokens/s", "predicted, tokens/s", "predicted / measured", "limit"]
    return [["weights", f"{document['core']}, one thread", *headers], *rows]


TABLES = {
    "device-predictions": Table(PAGE, ("predictions",), predictions),
    "loop-cycles": Table(PAGE, ("cycles",), cycles),
    "prediction-check": Table(PAGE, ("prediction-check",), check),
}
