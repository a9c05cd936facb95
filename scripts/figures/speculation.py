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


def draft(document: Document) -> Lines:
    """Ours and all of llama.cpp's, of all kinds together."""
    lines: Lines = [["program", "guesses", "tokens/s", "speed-up", "least", "tokens a pass", "left out"]]
    for row in document["parts"]["draft"]:
        if row["kind"] == "all":
            lines.append([row["program"], row["setting"], *_speeds(row), str(row["loops"])])
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


_RUNS = {"eagle2": "EAGLE-2", "eagle2-int4": "EAGLE-2, then for 4 bits", "short": "EAGLE-2, short"}
_RUNS |= {"eagle3": "EAGLE-3", "mtp": "multi-token", "bita": "BiTA"}
_RUNS |= {"short-eagle2": "EAGLE-2, short", "short-eagle3": "EAGLE-3", "short-mtp": "multi-token"}
_RUNS |= {"short-dspark": "DSpark"}


def draft_training(document: Document) -> Lines:
    """What the runs have learned."""
    lines: Lines = [["draft", "steps", "tokens", "cross-entropy", "first guess agrees", "second"]]
    for row in document["parts"]["training"]:
        second = row.get("held_out_last_agreement")
        lines.append(
            [
                _RUNS[row["run"]],
                str(row["step"]),
                f"{row['tokens'] / 1e6:.2f} M",
                f"{row['held_out']:.3f}",
                percent(row["held_out_agreement"], 1),
                "" if second is None else percent(second, 1),
            ]
        )
    return lines


def draft_categories(document: Document) -> Lines:
    """All ways on all questions, and FR-Spec by category."""
    lines: Lines = [
        [
            "temperature",
            "guesses",
            "category",
            *("tokens/s", "speed-up", "least", "tokens a pass", "drafting"),
        ]
    ]
    for row in document["parts"]["categories"]:
        if "ratio" in row and (row["kind"] == "all" or row["setting"] == "FR-Spec 1/8"):
            head = [str(row["temperature"]), row["setting"], row["kind"]]
            lines.append([*head, *_speeds(row), percent(row.get("draft_share", 0.0))])
    return lines


def draft_kinds(document: Document) -> Lines:
    """Drafts of other kinds: what they learned, and what they give."""
    lines: Lines = [["draft", "steps", "first guess agrees", "second"]]
    lines[0] += ["speed-up, greedy", "least", "tokens a pass", "speed-up, sampled", "least", "tokens a pass"]
    rows = {(row["setting"], row["temperature"]): row for row in document["parts"]["kinds"]}
    for run in document["parts"]["training"]:
        name = _RUNS[run["run"]]
        if (name, 0) in rows:
            second = run.get("held_out_last_agreement")
            learned = [str(run["step"]), percent(run["held_out_agreement"], 1)]
            learned.append("" if second is None else percent(second, 1))
            speeds = [each for heat in (0, 0.7) for each in _speeds(rows[name, heat])[1:]]
            lines.append([name, *learned, *speeds])
    return lines


def draft_heads(document: Document) -> Lines:
    """By size and list."""
    lines: Lines = [
        ["head", "has of the answers", *("tokens/s", "speed-up", "least", "tokens a pass", "drafting")]
    ]
    for row in document["parts"]["heads"]:
        if "ratio" in row and row["setting"] != "off":
            covers = percent(row["coverage"], 1)
            lines.append([row["setting"], covers, *_speeds(row), percent(row.get("draft_share", 0.0))])
    return lines


def draft_types(document: Document) -> Lines:
    """By types of target and draft, and trees."""
    lines: Lines = [["target", "draft and tree", "tokens/s", "speed-up", "least", "tokens a pass"]]
    for row in document["parts"]["types"]:
        if "ratio" in row:
            lines.append([row["program"].removeprefix("target of "), row["setting"], *_speeds(row)])
    return lines


TABLES = {
    "drafts-training": Table(_PAGE, ("drafts-training",), draft_training),
    "drafts-categories": Table(_PAGE, ("drafts-categories",), draft_categories, keys=3),
    "drafts-kinds": Table(_PAGE, ("drafts-kinds",), draft_kinds),
    "drafts-heads": Table(_PAGE, ("drafts-heads",), draft_heads),
    "drafts-types": Table(_PAGE, ("drafts-types",), draft_types, keys=2),
    "speculation-jobs": Table(_PAGE, ("speculation-jobs",), jobs, keys=3),
    "speculation-draft": Table(_PAGE, ("speculation-draft",), draft, keys=2),
    "speculation-chat": Table(_PAGE, ("speculation-chat",), chat, keys=2),
    "speculation-planted": Table(_PAGE, ("speculation-planted",), planted, keys=4),
    "speculation-steps": Table(_PAGE, ("speculation-planted",), steps, keys=2),
    "speculation-planted-8b": Table(_PAGE, ("speculation-planted-8b",), planted, keys=4),
}
