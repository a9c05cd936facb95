"""Times answers with trained drafts against plain decoding: their kinds, heads, types and trees.

    python scripts/bench_drafts.py [--runs FOLDER] [--parts training,categories,kinds,heads,types]
        [--rounds 2] [--per-category 4] [--tokens 200] [--keep FOLDER]

training    what the runs have learned, by their logs: nothing is timed
categories  first turns of Spec-Bench (--questions), greedy and sampled: plain, lookup, the EAGLE-2 draft that
            was trained for 4 bits with its target's whole head and with an eighth of it in 4 bits (FR-Spec),
            the same of the draft that was rounded after training, and `auto`: lookup with the built-in draft
kinds       the same with the other kinds of drafts
heads       the same draft with 1/16 to all of the head, by lists of tokens that are frequent in the model's
            own answers, in a text (--text) and in code (Python's own library), always 3 guesses
types       the target with 4 and 16 bits, the draft with 16 bits, rounded to 4, and trained for 4, with trees
            of some sizes and with those that pay

The drafts are those of runs/draft_smollm2.sh. All ways take turns at each prompt, every second time
backwards, with fresh processes in each round; figures are medians. Answers that loop are left out and
counted. Let the machine be idle. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers.options import at_least_one, names_of
from speculation.comparison import Comparison, Way, compare, ours
from speculation.prompts import chat

from edge.checkpoints.frequency_list import write_frequency_list
from edge.hub.built_in import BUILT_IN
from edge.hub.drafts import open_draft
from edge.hub.resolve import open_model
from edge.measure.frequencies import TokenCounts, count_tokens
from edge.text.tokenizer.load import open_tokenizer
from edge.train.data.shards import ShardFolder
from edge.train.metrics import read_log

CONTEXT = 2048
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "seed": 1}
SHARES = (16, 8, 4, 2)
NODES = (1, 3, 7)
SHARE = 8  # of the vocabulary: what FR-Spec leaves out
KINDS = {
    "short-eagle2": "EAGLE-2, short",
    "short-eagle3": "EAGLE-3",
    "short-mtp": "multi-token",
    "short-dspark": "DSpark",
    "bita": "BiTA",
}
"""Other runs, and what they are called in tables."""
NAMES = ("eagle2", "eagle2-int4", *KINDS)
_QUESTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "spec_bench.dev.jsonl"
_CODE = 200  # files
_NODES = 3  # guesses in every pass of the part heads

Rows = list[dict[str, Any]]


def draft_at(options: argparse.Namespace, name: str, target: str | None = None, **changes: Any) -> str:
    """The converted form of a draft of the runs, as `speculate` takes it. target: how the model is
    quantized.
    """
    folder = options.runs / name / "model"
    if name == "bita":  # read as it is
        return str(folder)
    return str(open_draft(folder, open_model(BUILT_IN.name, quantize=target), **changes).path)


def way(name: str, speculate: str, nodes: int | None = None, program: str = "edge", **more: Any) -> Way:
    """A way of ours under a name of its own."""
    (found,) = ours([speculate], program, **more)
    return Way(program, name, found.worker, {**found.fields, "nodes": nodes})


def compared(
    options: argparse.Namespace, ways: list[Way], per_category: int, sampling: dict[str, Any] | None = None
) -> Rows:
    """Rows of all ways on the questions, greedy unless sampling says otherwise."""
    sampling = sampling or {"temperature": 0}
    job = {
        "threads": options.threads,
        "context": CONTEXT,
        "max_new_tokens": options.tokens,
        "sampling": sampling,
    }
    prompts = chat(options.questions, per_category)
    rows = compare(Comparison(BUILT_IN.name, prompts, job, options.keep), ways, options.rounds, tell)
    return [{**row, "temperature": sampling["temperature"]} for row in rows]


def tell(row: dict[str, Any]) -> None:
    """Print a row, of all prompts."""
    if row["kind"] == "all" and "ratio" in row:
        length, share = row.get("accepted_length", 1.0), row.get("draft_share", 0.0)
        print(
            f"{row['program']:22} {row['setting']:24} {row['tokens_per_second']:7.1f} tokens/s "
            f"{row['total_ratio']:5.2f} x  {length:.2f} tokens a pass, {share:.0%} drafting, "
            f"same {row['same']} of {row['prompts']}, {row['loops']} left out",
            flush=True,
        )


def measure_categories(options: argparse.Namespace) -> Rows:
    """By category."""
    rows = open_model(BUILT_IN.name).config.vocab_size // SHARE
    trained, rounded = (
        draft_at(options, name, vocabulary=rows, head="int4") for name in ("eagle2-int4", "eagle2")
    )
    ways = [
        way("off", "off"),
        way("lookup", "lookup"),
        way("EAGLE-2", draft_at(options, "eagle2-int4", vocabulary="all")),
        way("FR-Spec 1/8", trained),
        way("FR-Spec 1/8, rounded", rounded),
        way("auto", "auto"),
    ]
    return greedy_and_sampled(options, ways)


def measure_kinds(options: argparse.Namespace) -> Rows:
    """Of other drafts, all questions together."""
    ways = [way("off", "off")]
    ways += [
        way(words, draft_at(options, name)) for name, words in KINDS.items() if (options.runs / name).exists()
    ]
    return [row for row in greedy_and_sampled(options, ways) if row["kind"] == "all"]


def greedy_and_sampled(options: argparse.Namespace, ways: list[Way]) -> Rows:
    """On the questions by category."""
    found = compared(options, ways, options.per_category)
    return found + compared(options, ways, options.per_category, SAMPLED)


def measure_training(options: argparse.Namespace) -> Rows:
    """What the runs have learned, by their logs."""
    rows = []
    for name in NAMES:
        if (options.runs / name / "model").exists():
            line = read_log(options.runs / name)[-1]
            held_out = [key for key in line if key.startswith("held_out") and key.endswith("/answers")]
            kept = {key.removesuffix("/answers"): line[key] for key in held_out}
            rows.append({"run": name, "step": line["step"], "tokens": line["tokens"], **kept})
    return rows


def lists(options: argparse.Namespace) -> Iterator[tuple[str, TokenCounts]]:
    """How often tokens occur in three kinds of text."""
    tokenizer = open_tokenizer(open_model(BUILT_IN.name))
    yield "its answers", TokenCounts(ShardFolder.open(options.runs / "answers").token_counts())
    if options.text.exists():
        yield "a text", count_tokens(tokenizer, [options.text])
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:_CODE]
    yield "code", count_tokens(tokenizer, files)


def measure_heads(options: argparse.Namespace) -> Rows:
    """By size and list of the head."""
    target = open_model(BUILT_IN.name)
    ends, size = target.config.eos_token_ids, target.config.vocab_size
    said = TokenCounts(ShardFolder.open(options.runs / "answers-held-out").token_counts())
    ways, covers = [way("off", "off")], {}
    for name, counts in lists(options):
        for share in SHARES:
            ids = counts.ranked(size // share, ends)
            file = options.runs / "lists" / f"{name.replace(' ', '-')}-1-{share}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_frequency_list(file, ids.tolist())
            setting = f"1/{share}, {name}"
            covers[setting] = said.coverage(np.asarray(ids))
            ways.append(way(setting, draft_at(options, "eagle2", vocabulary=file), _NODES))
    ways.append(way("all", draft_at(options, "eagle2", vocabulary="all"), _NODES))
    rows = compared(options, ways, max(1, options.per_category // 2))
    return [{**row, "coverage": covers.get(row["setting"], 1.0)} for row in rows if row["kind"] == "all"]


def measure_types(options: argparse.Namespace) -> Rows:
    """By the types of target and draft, and the size of the tree."""
    drafts = {"16 bits": ("eagle2", "f16"), "4 bits, rounded": ("eagle2", "int4")}
    if (options.runs / "eagle2-int4").exists():
        drafts["4 bits, trained"] = ("eagle2-int4", "int4")
    ways = []
    for bits, target in (("4", None), ("16", "f16")):
        program, opened = f"target of {bits} bits", {} if target is None else {"quantize": target}
        ways.append(way("off", "off", None, program, **opened))
        for name, (folder, quantize) in drafts.items():
            speculate = draft_at(options, folder, target, quantize=quantize)
            for nodes in (None, *NODES):
                setting = f"{name}, {'what pays' if nodes is None else f'{nodes} guesses'}"
                ways.append(way(setting, speculate, nodes, program, **opened))
    rows = compared(options, ways, max(1, options.per_category // 2))
    return [row for row in rows if row["kind"] == "all"]


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "training": measure_training,
    "categories": measure_categories,
    "kinds": measure_kinds,
    "heads": measure_heads,
    "types": measure_types,
}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/runs/draft"), metavar="FOLDER")
    parser.add_argument("--parts", type=names_of(PARTS), default=tuple(PARTS))
    parser.add_argument("--text", type=Path, default=_QUESTIONS.with_name("wikitext-2-raw.valid.txt"))
    parser.add_argument("--threads", type=at_least_one, default=2)
    parser.add_argument("--rounds", type=at_least_one, default=2)
    parser.add_argument("--tokens", type=at_least_one, default=200, help="of an answer")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--questions", type=Path, default=_QUESTIONS)
    parser.add_argument("--per-category", type=at_least_one, default=4)
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    load = os.getloadavg()[0]
    parts = {part: PARTS[part](options) for part in options.parts}
    document = {"load": load, "model": BUILT_IN.name, "threads": options.threads, "rounds": options.rounds}
    print(json.dumps({**document, "parts": parts}))


if __name__ == "__main__":
    main()
