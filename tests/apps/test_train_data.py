"""`edge train tokenizer` and `edge train tokenize` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.train.data.shards import ShardFolder

PAGES = Path(__file__).parents[2] / "docs"


@pytest.fixture
def tokenizer(run_edge, tmp_path: Path) -> Path:
    """A tokenizer of the documentation, made by the command."""
    pages = [str(page) for page in sorted(PAGES.glob("*.md"))[:6]]
    texts = []
    for page in pages:
        texts.append(str(tmp_path / f"{Path(page).stem}.txt"))
        Path(texts[-1]).write_text(Path(page).read_text("utf-8"), "utf-8")
    out = tmp_path / "new" / "tokenizer"
    done = run_edge("train", "tokenizer", *texts, "--vocabulary", "400", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["vocabulary"], said["documents"], said["out"]) == (400, 6, str(out))
    assert said["characters"] == sum(len(Path(text).read_text("utf-8")) for text in texts)
    return out


def test_texts_become_shards(run_edge, tmp_path: Path, tokenizer: Path):
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"line {number} of a text\n" for number in range(300)))
    out = tmp_path / "shards"
    command = [
        *("train", "tokenize", str(text), "--split", "line", "--holdout", "0.2", "--shard-size", "0.002"),
        *("--tokenizer", str(tokenizer), "--out", str(out), "--workers", "2"),
    ]
    done = run_edge(*command, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    kept, held = ShardFolder.open(out), ShardFolder.open(said["heldout"]["out"])
    assert said["documents"] + said["heldout"]["documents"] == 300 == kept.documents + held.documents
    assert (said["tokens"], said["heldout"]["tokens"]) == (kept.tokens, held.tokens)
    assert said["shards"] == len(kept.shards) > 1
    again = run_edge(*command)
    assert again.returncode == 0, again.stderr
    assert f"Wrote {out}: {kept.tokens} tokens of {kept.documents} documents" in again.stdout
    assert f"Wrote {out}-heldout: {held.tokens} tokens" in again.stdout


def test_what_is_wrong_is_said_in_a_sentence(run_inside, tmp_path: Path, tokenizer: Path):
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "a"}\n{"text": 1}\n')
    out = str(tmp_path / "out")
    for arguments, message in (
        (("tokenize", str(text), "--tokenizer", str(tokenizer), "--out", out), "a.jsonl' line 2 has no text"),
        (("tokenize", str(text), "--tokenizer", str(PAGES), "--out", out), "has no tokenizer.json"),
        (("tokenizer", str(text), "--vocabulary", "400", "--out", str(tokenizer)), "exists already"),
        (("tokenizer", str(tmp_path / "no.txt"), "--vocabulary", "400", "--out", out + "2"), "No such"),
    ):
        done = run_inside("train", *arguments)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not Path(out, "index.json").exists()


def test_options_and_the_batch_for_a_loss_are_printed(run_edge):
    printed = run_edge("train", "options", "schedule").stdout
    assert "schedule.shape = exponential" in printed and "data.rows" not in printed
    assert "choose one of data, schedule" in run_edge("train", "options", "nothing").stderr
    assert run_edge("train", "batch", "2.5").stdout == "3.98M tokens a step\n"
    assert "A loss is a positive number, not 0." in run_edge("train", "batch", "0").stderr
