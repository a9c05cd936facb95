"""What a user gets wrong: one sentence, the exit code 1, and nothing left behind that is in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from tests.train.runs import (
    TOKENIZER,
    facts,
    finished,
    losses,
    run,
    write_config,
    write_documents,
    write_texts,
)


def nothing(folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    write_documents(folder / "empty", [], facts(), TOKENIZER)


def other_tokenizer(folder: Path) -> None:
    write_texts(folder / "other", tokenizer={"tokenizer.json": b"other"})


def a_file(folder: Path) -> None:
    (folder / "file").write_bytes(b"")


def cut_texts(folder: Path) -> None:
    write_texts(folder / "cut")
    path = next((folder / "cut").rglob("tokens.bin"))
    path.write_bytes(path.read_bytes()[:-10])


def of_one_token(folder: Path) -> None:
    write_documents(folder / "single", [[3]] * 50, facts(), TOKENIZER)


Make = Callable[[Path], None]
WRONG: dict[str, tuple[Make, dict[str, Any], str]] = {
    "no texts": (nothing, {"data": {"sources": {}}}, "The run has no texts; name token shards under"),
    "texts that are not there": (
        nothing,
        {"data": {"sources": {"t": "HERE/nowhere"}}},
        "nowhere' is no finished folder of token shards",
    ),
    "texts that are a file": (a_file, {"data": {"sources": {"t": "HERE/file"}}}, "HERE/file"),
    "empty texts": (
        empty,
        {"data": {"sources": {"t": "HERE/empty"}}},
        "The source 't' has no tokens; leave it out.",
    ),
    "texts cut short": (cut_texts, {"data": {"sources": {"t": "HERE/cut"}}}, "HERE/cut"),
    "empty texts held out": (
        empty,
        {"evaluation": {"sources": {"e": "HERE/empty"}}},
        "The source 'e' has no tokens; leave it out.",
    ),
    "held-out texts that are not there": (
        nothing,
        {"evaluation": {"sources": {"e": "HERE/nowhere"}}},
        "nowhere' is no finished folder of token shards",
    ),
    "held-out texts of another tokenizer": (
        other_tokenizer,
        {"evaluation": {"sources": {"e": "HERE/other"}}},
        "The texts 'e' and 't' were made with different tokenizers; tokenize them with one.",
    ),
    "texts of another tokenizer": (
        other_tokenizer,
        {"data": {"sources": {"a": "HERE/texts", "o": "HERE/other"}}},
        "The texts 'o' and 'a' were made with different tokenizers",
    ),
    "a weight for no source": (
        nothing,
        {"data": {"weights": {"x": 1}}},
        "data weighs 'x', which is none of its sources (t).",
    ),
    "weights of 0": (nothing, {"data": {"weights": {"t": 0}}}, "must be 0 or more, and one positive"),
    "phases out of order": (
        nothing,
        {"data": {"phases": [{"begins": 0.8, "weights": {"t": 1}}, {"begins": 0.4, "weights": {"t": 1}}]}},
        "The phases of data are out of order; sort them by 'begins'.",
    ),
    "buckets out of order": (
        nothing,
        {"data": {"buckets": [32, 16]}},
        "Buckets must be ascending lengths, not [32, 16].",
    ),
    "a bucket without documents": (
        nothing,
        {"data": {"buckets": [16, 50, 120]}},
        "has documents for rows of 120",
    ),
    "rows longer than the context": (nothing, {"data": {"length": 256}}, "256"),
    "buckets longer than the context": (nothing, {"data": {"buckets": [16, 256]}}, "256"),
    "a model that can't be": (nothing, {"model": {"num_key_value_heads": 3}}, "num_key_value_heads"),
    "an unknown model option": (nothing, {"model": {"hiden_size": 3}}, "hiden_size"),
    "a model option of the wrong type": (nothing, {"model": {"hidden_size": "x"}}, "hidden_size"),
    "an unknown rope option": (nothing, {"model": {"rope": {"type": "default", "x": 3}}}, "x"),
    "sparse without constants": (
        nothing,
        {"attention": {"kind": "sparse"}},
        "attention.kind=sparse needs the constants of model.sparse",
    ),
    "sparse constants that can't be": (
        nothing,
        {"attention": {"kind": "sparse"}, "model": {"sparse": {"block_size": 0}}},
        "block_size",
    ),
    "a scheme that is not trained": (
        nothing,
        {"quantization": {"scheme": "int8"}},
        "Weights can't be trained as",
    ),
    "no GPU": (nothing, {"runtime": {"device": "cuda"}}, "PyTorch finds no CUDA device here"),
}


@pytest.mark.parametrize(("make", "sections", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_before_the_first_step(
    tmp_path: Path, make: Make, sections: dict[str, Any], sentence: str
):
    def here(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: here(each) for name, each in value.items()}
        return value.replace("HERE", str(tmp_path)) if isinstance(value, str) else value

    make(tmp_path)
    # The command puts any EdgeError as one line and ends with 1: tests/apps/test_bad_input.py.
    with pytest.raises(EdgeError) as caught:
        run(tmp_path, **here(sections))
    assert here(sentence) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    run(tmp_path, schedule={"steps": 1})


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["run", "CONFIG"], 2, "give the folder of the run, or --dry-run"),
        (
            ["run", "nothing", "--out", "HERE/run"],
            1,
            "There is no run 'nothing'; give a TOML file, or one of",
        ),
        (["run", "CONFIG", "--out", "CONFIG"], 1, "run.toml"),
        (["run", "CONFIG", "--out", "HERE/run", "--set", "schedule.steps=0"], 1, "steps must be a whole"),
        (["run", "CONFIG", "--dry-run", "--set", "data.length=1000"], 1, "1000"),
        (["run", "CONFIG", "--dry-run", "--picture", "HERE/no/such/x.png"], 1, "no/such/x.png"),
        (["plot", "HERE/nowhere", "--out", "HERE/x.png"], 1, "has no log.jsonl"),
    ],
)
def test_the_command_says_it_in_one_line(tmp_path: Path, words: list[str], code: int, sentence: str):
    config = write_config(tmp_path)
    words = [each.replace("CONFIG", str(config)).replace("HERE", str(tmp_path)) for each in words]
    found, printed, complained = finished(*words, out=tmp_path / "said")
    assert (found, printed) == (code, "") and complained.count("\n") == 1
    assert complained.startswith("Error: ") and sentence in complained


ODD: dict[str, dict[str, Any]] = {
    "a run shorter than its warm-up": {"schedule": {"steps": 2, "warm_up": 100}},
    "one step": {"schedule": {"steps": 1, "warm_up": 0, "decay": 1.0}},
    "more parts than rows": {"runtime": {"accumulation": 9}},
    "parts that don't divide the rows": {"data": {"rows": 5}, "runtime": {"accumulation": 2}},
    "more held-out rows than a step has": {"data": {"rows": 4}, "evaluation": {"rows": 7}},
    "rows longer than all texts": {"data": {"length": 128, "rows": 64}, "schedule": {"steps": 1}},
    "nothing held out": {"evaluation": {"sources": {}}},
    "no limit": {"optimizer": {"clip": 0.0}},
    "no learning rate": {"optimizer": {"learning_rate": 0.0}},
    "a phase at the end": {"data": {"phases": [{"begins": 1.0, "weights": {"t": 1}}]}},
}


@pytest.mark.parametrize("sections", ODD.values(), ids=ODD.keys())
def test_odd_numbers_are_fine(tmp_path: Path, sections: dict[str, Any]):
    outcome, _ = run(tmp_path, **sections)
    assert outcome.model is not None and all(each > 0 for each in losses(tmp_path / "run"))


def test_held_out_losses_dont_depend_on_how_they_are_computed(tmp_path: Path):
    """All of the rows, in parts as large as those of a step."""
    found = []
    for name, rows in (("a", 2), ("b", 5)):
        _, said = run(
            tmp_path,
            name,
            data={"rows": rows},
            evaluation={"rows": 7, "every": 1},
            optimizer={"learning_rate": 0.0},
        )
        found.append(said.steps[0]["held_out/t"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_texts_without_a_next_token_have_no_loss(tmp_path: Path):
    of_one_token(tmp_path)
    _, said = run(tmp_path, data={"sources": {"t": str(tmp_path / "single")}}, evaluation={"sources": {}})
    assert all(line["loss"] is None for line in said.steps)
