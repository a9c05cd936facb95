"""From the folders that the scripts in runs/ leave to the tables of docs/training.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge.train.config import read
from edge.train.plan import plan
from runs import summary
from scripts.figures import measuring, pages, training
from scripts.figures.declaration import Document, Lines

CONFIG = {"data": {"length": 256, "rows": 8}}


def leave(folder: Path, loss: float | None, **figures: Any) -> None:
    """A run's folder; loss: held out, None for a run that diverged."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    end = {} if loss is None else {"held_out/texts": loss}
    lines = [{"step": step, "tokens": 2048 * step, "tokens_per_second": 100.0 * step} for step in (1, 2)]
    lines[-1] |= {**end, **figures}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(lines: Lines, *keys: str) -> list[str]:
    """The other cells of the row that begins with these."""
    (found,) = (cells[len(keys) :] for cells in lines[1:] if cells[: len(keys)] == list(keys))
    return found


def test_schedules_are_compared_by_length_and_by_decay(tmp_path: Path):
    names = {"stable": 9.0, "cosine-400": 3.2, "scratch-400": 3.1, "branch-400": 3.1, "cosine-1200": 3.0}
    names |= {"scratch-1200": 2.9, "branch-1200": 2.8, "share-0.025": 2.95, "shape-linear": 2.79}
    for name, loss in names.items():
        for seed in (0, 1):
            leave(tmp_path / "wsd" / f"{name}-{seed}", loss + (0.01 if seed else -0.01))
    document = summary.wsd(tmp_path)
    assert row(training.lengths(document), "400") == [
        "0.82 M", "3.2000 ± 0.0141", "3.1000 ± 0.0141", "3.1000 ± 0.0141"
    ]  # fmt: skip
    assert [cells[0] for cells in training.lengths(document)[1:]] == ["400", "1200"]
    decays = training.decays(document)
    assert row(decays, "exponential", "2.5 %") == ["2.9500 ± 0.0141", "+0.1500"]
    assert row(decays, "exponential", "10.0 %") == ["2.8000 ± 0.0141", "+0.0000"]
    assert row(decays, "linear", "10.0 %")[1] == "-0.0100"


def test_the_best_rate_moves_by_steps_of_the_grid(tmp_path: Path):
    best = {("mup", 64): 0.01, ("mup", 256): 0.01, ("plain", 64): 0.01, ("plain", 256): 0.0025}
    for (kind, width), rate in best.items():
        for step, each in enumerate((0.0025, 0.005, 0.01, 0.02)):
            loss = None if each == 0.02 and kind == "plain" else 3.0 + abs(each - rate) + step * 1e-6
            leave(tmp_path / "mup" / f"{kind}-{width}-{each}-0", loss)
    document = json.loads(json.dumps(summary.mup(tmp_path)))
    assert row(training.best_rates(document), "muP", "256") == ["0.01", "0.01", "0"]
    assert row(training.best_rates(document), "none", "256") == ["0.0025", "0.0025", "-2"]
    losses = training.losses_by_rate(document)
    assert losses[0][2:] == ["rate 0.0025", "rate 0.005", "rate 0.01", "rate 0.02"]
    assert row(losses, "none", "64")[-2:] == ["3.0000", "diverged"]


def test_one_of_two_seeds_may_diverge(tmp_path: Path):
    leave(tmp_path / "ternary" / "float-0", 3.0)
    leave(tmp_path / "ternary" / "share-0.4-0", 3.1)
    leave(tmp_path / "ternary" / "share-0.4-1", None)
    document = json.loads(json.dumps(summary.ternary(tmp_path)))
    assert row(training.ternary(document), "ternary on the last 40 %") == ["diverged", ""]


def test_seeds_may_have_rates_of_their_own(tmp_path: Path):
    """The best mean is among the rates that all seeds have, also where one seed alone has a lower loss."""
    for rate, losses in {"0.005": (3.2, 3.1), "0.01": (3.0, 3.4), "0.02": (2.9, None)}.items():
        for seed, loss in enumerate(losses):
            if loss is not None:
                leave(tmp_path / "mup" / f"mup-64-{rate}-{seed}", loss)
    found = summary.mup(tmp_path)["kinds"]["mup"]["64"]
    assert found["best"] == "0.005" and found["best_by_seed"] == ["0.02", "0.005"]
    assert found["seeds"] == {"0.005": 2, "0.01": 2, "0.02": 1}


def test_ways_to_ternary_weights_stand_beside_the_float_run(tmp_path: Path):
    for name, loss in {"float": 3.0, "stable": 3.3, "share-0": 5.0, "share-0.4": 3.1}.items():
        leave(tmp_path / "ternary" / f"{name}-0", loss)
    leave(tmp_path / "ternary" / "scratch-g32-0", None)
    lines = training.ternary(json.loads(json.dumps(summary.ternary(tmp_path))))
    assert row(lines, "float, all steps") == ["3.0000", ""]
    assert row(lines, "ternary on the last 40 %") == ["3.1000", "+0.1000"]
    assert row(lines, "ternary from the first step") == ["diverged", ""]
    assert len(lines) == 5


def test_the_second_token_has_a_loss_and_an_acceptance(tmp_path: Path):
    leave(tmp_path / "multi-token" / "0.0-0", 3.0)
    folder = tmp_path / "multi-token" / "0.3-0"
    leave(folder, 3.02, **{"held_out_second/texts": 4.0})
    (folder / "acceptance.json").write_text(json.dumps({"shares": {"own": 0.5, "text": 0.2, "network": 0.3}}))
    lines = training.multi_token(summary.multi_token(tmp_path))
    assert row(lines, "0.3") == ["3.0200", "+0.0200", "4.0000", "50.0 %", "20.0 %", "30.0 %"]
    assert row(lines, "none") == ["3.0000", "", "", "", "", ""]


def test_the_end_to_end_run_has_perplexities_and_checks(tmp_path: Path):
    folder = tmp_path / "tiny"
    for name, loss in {"float": 3.0, "ternary": 3.2}.items():
        leave(folder / name, None, **{"held_out/austen": loss})
        (folder / f"perplexity-{name}.json").write_text(json.dumps({"perplexity": 10 * loss, "tokens": 7}))
    check = {"runtime": "llama.cpp", "version": "1", "divergence": 1e-3, "limit": 1e-2, "agreement": 1.0}
    (folder / "check-gguf.json").write_text(json.dumps({**check, "passed": True}))
    (folder / "gguf").mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(b"x" * 2000)
    (folder / "chat.txt").write_text("Elizabeth was")
    document = summary.tiny(tmp_path)
    assert row(training.tiny(document), "ternary") == ["32.00", "6.7 %", "7"]
    assert row(training.tiny_stages(document), "float") == ["0.00 M", "200", "3.0000"]
    assert row(training.tiny_exports(document), "gguf") == [
        "2.00 kB", "llama.cpp 1", "1.0e-03", "1e-02", "100 %", "passed"
    ]  # fmt: skip


def test_the_speed_has_the_ratio_beside_the_other_loops():
    document: Document = {"tokens_per_second": {"loop": 900.0, "plain": 800.0, "gpt": 950.0}}
    document |= {"utilisation": {"loop": 0.4, "plain": 0.36, "gpt": 0.42}}
    document["loop_over"] = {"plain": 1.12, "gpt": 0.95}
    lines = training.speed(document)
    assert row(lines, "`edge train run`") == ["900", "40 %", ""]
    assert row(lines, "the same shape, nanochat's style") == ["950", "42 %", "0.95"]


def test_a_table_waits_with_a_sentence_until_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    page = "before\n<!-- figures: training-mup -->\n{}<!-- end -->\nafter\n"
    waits = "Not measured yet: `runs/mup.sh`.\n"
    kept = {"command": "runs/mup.sh", "created": "2026-01-01", "version": "1", "remarks": []}
    kept["machine"] = {"cpu": "A", "kind": "", "tier": "t", "cores": 2, "memory_bytes": None, "system": "L"}
    kept["document"] = {"kinds": {"mup": {"64": {"losses": {"0.1": 3.0}, "best": "0.1", "best_by_seed": []}}}}
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "document_of", lambda name, kind=None: tmp_path / f"{name}.json")
    for stands, wanted in (("", waits), (waits, waits), ("| a table |\n", "| a table |\n")):
        (tmp_path / "page.md").write_text(page.format(stands))
        assert pages.written("page.md") == page.format(wanted)
    (tmp_path / "page.md").write_text(page.format(waits))
    (tmp_path / "training-mup.json").write_text(json.dumps(kept))
    assert "| muP | 64 | 0.1 |" in pages.written("page.md") and waits not in pages.written("page.md")


def test_a_picture_stands_below_its_table_once_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    kept = {"command": "runs/wsd.sh", "created": "2026-01-01", "version": "1", "remarks": []}
    kept["machine"] = {"cpu": "A", "kind": "", "tier": "t", "cores": 2, "memory_bytes": None, "system": "L"}
    kept["document"] = {"losses": {}, "tokens_per_step": 1}
    (tmp_path / "training-wsd.json").write_text(json.dumps(kept))
    monkeypatch.setattr(pages, "PICTURES", tmp_path)
    monkeypatch.setattr(pages, "document_of", lambda name, kind=None: tmp_path / f"{name}.json")
    assert "![" not in pages.rendered("training-wsd")
    (tmp_path / "training-wsd.png").write_bytes(b"")
    assert "](images/training-wsd.png)" in pages.rendered("training-wsd")


def test_the_options_of_a_training_run():
    """`make figures` would change nothing; every field of the configuration has its line."""
    text = (measuring.ROOT / training.PAGE).read_text(encoding="utf-8")
    (stands,) = re.findall(r"<!-- options of a run -->\n(.*?)<!-- end -->", text, re.S)
    assert stands == training.options(), "run `make figures`"
    assert "| `start.path` | none |" in stands and "| `schedule.steps` | must be given |" in stands


def test_the_file_on_the_page_is_a_run(tmp_path: Path):
    text = (measuring.ROOT / training.PAGE).read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "my.toml").write_text(example)
    found = read(tmp_path / "my.toml")
    assert found.model.changes["hidden_size"] == 256 and found.data.phases[0].weights == {"books": 1}
    assert plan(found).parameters > 10**6
