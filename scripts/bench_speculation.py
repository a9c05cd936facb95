"""Times guesses against plain decoding, of this project and of llama.cpp, on the same file and prompts.

    python scripts/bench_speculation.py [--parts jobs,chat,planted] [--rounds 3] [--keep FOLDER]
        [--model FILE] [--llama-server PROGRAM] [--every N] [--per-category 4] [--shapes minicpm4-0.5b]

jobs     60 prompts that ask for a copy, an edit or JSON: ours plain and with lookup, llama.cpp's server plain
         and with its ways to look up
chat     first turns of Spec-Bench (--questions), by category: ours plain and with lookup
draft    the same jobs with another model as draft, for both: --draft beside --model, or else the built-in one
         in 4 bits beside itself in 16, GGUF files of our export that are made in --files
planted  the cost model: guesses that are right with a known probability, on random weights of --shapes, free
         and with EAGLE-2 networks whose heads have all tokens or a part of them

Answers are greedy, those of the part chat sampled with a seed. All ways take turns at each prompt, every
second time backwards, and have fresh processes in each round, so that nobody has seen a prompt before. The
figures are medians. Answers in which 8 tokens come three times that do not stand in the prompt are left out
and counted. llama-server is built as CONTRIBUTING.md says (Peers); --llama-server or $EDGE_PEER_LLAMA_SERVER
names it, and without it ours is measured alone. A round's answers are kept in the folder, if one is named,
and not measured again. Let the machine be idle. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.options import at_least_one, names_of
from speculation.comparison import LOOKUPS, Comparison, Way, compare, llama, ours
from speculation.planted import HEADS, shape_document
from speculation.prompts import chat, jobs

from edge.hub.built_in import BUILT_IN

RIGHTS = (0.5, 0.6, 0.7, 0.8, 0.9)
CONTEXT = 2048
LONGEST = 300  # tokens of an answer
TALK = {"temperature": 0.8, "top_p": 0.9, "seed": 1}
"""As people chat; greedy answers of a small model to open questions end in loops."""
_VARIABLE = "EDGE_PEER_LLAMA_SERVER"
_FILES = Path(__file__).resolve().parents[1] / "build" / "figures" / "speculation"
_QUESTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "spec_bench.dev.jsonl"

Rows = list[dict[str, Any]]


def _compare(
    options: argparse.Namespace,
    prompts: list[Any],
    ways: list[Way],
    model: str | None = None,
    sampling: dict[str, Any] | None = None,
) -> Rows:
    job = {"threads": options.threads, "context": CONTEXT, "max_new_tokens": LONGEST}
    job["sampling"] = sampling or {"temperature": 0}
    comparison = Comparison(model or options.model, prompts[:: options.every], job, options.keep)
    return compare(comparison, ways, options.rounds, lambda row: print(line_of(row), flush=True))


def _theirs(options: argparse.Namespace, settings: dict[str, list[str]]) -> list[Way]:
    if options.llama_server is None:
        print(f"llama.cpp is left out: name its server with --llama-server or ${_VARIABLE}.", flush=True)
        return []
    return llama(options.llama_server, settings)


def measure_jobs(options: argparse.Namespace) -> Rows:
    """Lookup on copies, edits and JSON."""
    asked = [name.strip() for name in options.lookups.split(";")] if options.lookups else list(LOOKUPS)
    theirs = {name: LOOKUPS[name] for name in asked}
    ways = ["off", "lookup"]
    mine = [*ours(ways), *ours(ways, "edge, int8", activations="int8")]  # llama.cpp computes with int8
    return _compare(options, jobs(), [*mine, *_theirs(options, theirs)])


def measure_chat(options: argparse.Namespace) -> Rows:
    """Lookup on questions, where it has little to find."""
    prompts = chat(options.questions, options.per_category)
    return _compare(options, prompts, ours(["off", "lookup"]), sampling=TALK)


def exported(folder: Path, quantize: str) -> str:
    """The built-in model as a GGUF file of these weights, made where it is not there yet."""
    target = folder / f"{BUILT_IN.name}-{quantize}"
    if not target.exists():
        command = [sys.executable, "-m", "edge", "export", BUILT_IN.name, "--to", "gguf"]
        subprocess.run([*command, "--quantize", quantize, "--out", str(target)], check=True)
    return str(target / "model.gguf")


def measure_draft(options: argparse.Namespace) -> Rows:
    """Another model as draft; llama.cpp's looks ahead as far as each of some settings says."""
    model, draft = options.model, options.draft
    if draft is None:
        model, draft = exported(options.files, "f16"), exported(options.files, "int4-g32")
    settings = {
        f"draft of {most}": ["--spec-type", "draft-simple", "-md", draft, "--spec-draft-n-max", most]
        for most in ("2", "4", "8", "16")
    }
    (plain, guessed) = ours(["off", draft])
    mine = [plain, replace(guessed, setting="draft")]
    return _compare(options, jobs(), [*mine, *_theirs(options, settings)], model)


def measure_planted(options: argparse.Namespace) -> Rows:
    """The cost model."""
    quantize = {"threads": options.threads, "quantize": "int4"}
    documents = []
    for shape in options.shapes.split(","):
        heads = options.heads.split(",")
        documents.append(shape_document(shape, RIGHTS, heads, options.tokens, options.rounds, quantize))
        for row in documents[-1]["rows"]:
            text = f"{shape}, {row['head']}, right {row['right']}: {row['measured']:.2f} x"
            print(f"{text}, predicted {row['predicted']:.2f} x", flush=True)
    return documents


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "jobs": measure_jobs,
    "chat": measure_chat,
    "draft": measure_draft,
    "planted": measure_planted,
}


def line_of(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    text = f"{row['program']:10} {row['setting']:24} {row['kind']:15} {row['prompts']:3} prompts"
    if "ratio" not in row:
        return f"{text}: none without loops"
    text += (
        f" {row['tokens_per_second']:7.1f} tokens/s {row['ratio']:5.2f} x (in sum {row['total_ratio']:.2f} x)"
    )
    return f"{text}  same {row['same']}, right {row['right']}, left out {row['loops']}"


def summary(rows: Rows) -> dict[str, float]:
    """Of all jobs: the speed-ups of our lookup and of llama.cpp's best, and ours over that."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "all" and row["setting"] not in ("off", "plain") and "ratio" in row:
            others = best.get(row["program"])
            if others is None or row["tokens_per_second"] > others["tokens_per_second"]:
                best[row["program"]] = row
    found = {f"{program}, {row['setting']}": row["total_ratio"] for program, row in best.items()}
    theirs = best.pop("llama.cpp", None)
    if theirs is not None:
        for program, row in best.items():
            ratio = row["tokens_per_second"] / theirs["tokens_per_second"]
            found[f"tokens/s of {program} over theirs"] = round(ratio, 3)
    return found


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=names_of(PARTS), default=("jobs", "chat", "planted"))
    parser.add_argument("--model", help="a GGUF file; by default that of the built-in model")
    parser.add_argument("--draft", help="a GGUF file of a model with the same tokenizer")
    parser.add_argument("--files", type=Path, default=_FILES, metavar="FOLDER")
    parser.add_argument("--llama-server", default=os.environ.get(_VARIABLE), metavar="PROGRAM")
    parser.add_argument("--lookups", help=f"llama.cpp's, by ;: {'; '.join(LOOKUPS)}")
    parser.add_argument("--threads", type=at_least_one, default=2)
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--every", type=at_least_one, default=1, help="take only each Nth prompt")
    parser.add_argument("--questions", type=Path, default=_QUESTIONS)
    parser.add_argument("--per-category", type=at_least_one, default=4)
    parser.add_argument("--shapes", default="minicpm4-0.5b,minicpm4-8b")
    parser.add_argument("--heads", default=",".join(HEADS), help="of the part planted")
    parser.add_argument("--tokens", type=at_least_one, default=128, help="of an answer of the part planted")
    options = parser.parse_args(arguments)
    options.model = options.model or str(BUILT_IN.file())
    return options


def main() -> None:
    options = options_of()
    load = os.getloadavg()[0]
    parts = {part: PARTS[part](options) for part in options.parts}
    document = {
        "load": load,
        "model": Path(options.model).name,
        "threads": options.threads,
        "rounds": options.rounds,
        "parts": parts,
        "summary": summary(parts.get("jobs", parts.get("draft", []))),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
