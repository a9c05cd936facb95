"""The tables of docs/speculation.md."""

from __future__ import annotations

from .declaration import Document, Lines, Table, percent

_PAGE = "docs/speculation.md"


def jobs(document: Document) -> Lines:
    """Ours and llama.cpp's best by kind."""
    lines: Lines = [
        ["program", "guesses", "prompts", "tokens/s", "speed-up", "least", "tokens a pass", "left out"]
    ]
    rows = document["parts"]["jobs"]
    for row in rows:
        if row["kind"] == "all" or (row["program"].startswith("edge") and row["setting"] != "off"):
            lines.append([row["program"], row["setting"], row["kind"], *_speeds(row), str(row["loops"])])
    return lines


def chat(document: Document) -> Lines:
    lines: Lines = [["category", "prompts", "tokens/s", "speed-up", "least", "tokens a pass", "left out"]]
    for row in document["parts"]["chat"]:
        if row["setting"] != "off":
            lines.append([row["kind"], str(row["prompts"]), *_speeds(row), str(row["loops"])])
    return lines


def _speeds(row: Document) -> list[str]:
    if "ratio" not in row:
        return ["", "", "", ""]
    length = row.get("accepted_length")
    return [
        f"{row['tokens_per_second']:.1f}",
        f"{row['total_ratio']:.2f}",
        f"{row['least_ratio']:.2f}",
        "" if length is None else f"{length:.2f}",
    ]


def planted(document: Document) -> Lines:
    lines: Lines = [
        ["shape", "drafts", "right", "guesses", "predicted", "measured", "of it", "tokens a pass", "drafting"]
    ]
    for shape in document["parts"]["planted"]:
        for row in shape["rows"]:
            lines.append(
                [
                    shape["shape"],
                    row["head"],
                    percent(row["right"]),
                    str(row["guesses"]),
                    f"{row['predicted']:.2f}",
                    f"{row['measured']:.2f}",
                    percent(row["measured_of_predicted"]),
                    f"{row['accepted_length']:.2f}",
                    percent(row["draft_share"]),
                ]
            )
    return lines


def steps(document: Document) -> Lines:
    """What a row of verification and a step of drafting cost."""
    lines: Lines = [["shape", "what", "cost"]]
    for shape in document["parts"]["planted"]:
        costs = shape["costs_of_rows"]
        rows = ", ".join(f"{costs[count]:.2f}" for count in ("2", "4", "8", "16"))
        lines.append([shape["shape"], "a pass of 2, 4, 8, 16 rows, in plain ones", rows])
        plain = 1e3 / shape["plain_tokens_per_second"]
        for head, each in shape["step_ms"].items():
            lines.append(
                [
                    shape["shape"],
                    f"a draft step, {head}",
                    f"{each:.2f} ms, {each / plain:.3f} of a plain pass",
                ]
            )
    return lines


TABLES = {
    "speculation-jobs": Table(_PAGE, ("speculation-jobs",), jobs, keys=3),
    "speculation-chat": Table(_PAGE, ("speculation-chat",), chat, keys=2),
    "speculation-planted": Table(_PAGE, ("speculation-planted",), planted, keys=4),
    "speculation-steps": Table(_PAGE, ("speculation-planted",), steps, keys=2),
    "speculation-planted-8b": Table(_PAGE, ("speculation-planted-8b",), planted, keys=4),
}
