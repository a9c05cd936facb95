"""`edge eval frequencies` and `edge export --draft` as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edge.formats.bundle.reader import Bundle
from edge.hub.drafts import bundled_draft


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("a small corpus of letters\n" * 50)
    return path


def test_a_list_for_a_model(run_inside: Callable[..., Any], tiny_checkpoint: Any, text: Path) -> None:
    folder, out = tiny_checkpoint(), text.with_name("freq_20.pt")
    for path in folder.glob("*.safetensors"):
        path.unlink()  # the weights are not needed
    command = ("eval", "frequencies", str(folder), "--text", str(text), "--text", str(text))
    done = run_inside(*command, "--size", "20", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    ids = torch.load(out, weights_only=True)
    assert type(ids) is list and len(ids) == facts["size"] == 20
    assert facts["list"] == str(out) and facts["unseen"] == 20 - facts["different"]
    vocabulary = facts["vocabulary"]
    assert facts["coverage"] == {
        str(size): 1.0 for size in sorted({20, *(vocabulary // part for part in (8, 4, 2))})
    }
    page = run_inside(*command, "-o", str(text.with_name("ids.json")))
    assert page.returncode == 0 and f"{vocabulary // 4} of {vocabulary} tokens" in page.stdout
    assert "most frequent are 100.00% of these texts" in page.stdout and "never came up" in page.stdout
    assert len(json.loads(text.with_name("ids.json").read_text())) == vocabulary // 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--size", "99999999"), "The model has only"),
        (("--size", "0"), "--size"),
        (("-o", "freq.txt"), "let it end in .pt, .npy, .json"),
        (("-o", "nowhere/freq_20.pt", "--size", "20"), "nowhere/freq_20.pt"),
        (("--text", "none"), "Cannot read 'none'"),
    ],
)
def test_what_is_refused(
    run_inside: Callable[..., Any], tiny_checkpoint: Any, text: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_inside("eval", "frequencies", str(tiny_checkpoint()), "--text", str(text), *options)
    assert done.returncode and says in done.stderr and "Traceback" not in done.stderr


def test_an_export_with_a_draft(run_inside: Callable[..., Any], tiny_checkpoint: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("export", str(tiny_checkpoint()), "--to", "bundle", "--draft", "random:eagle2")
    plan = run_inside(*command, "--draft-vocabulary", "40", "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    done = run_inside(*command, "--draft-vocabulary", "40", "--out", str(out))
    assert done.returncode == 0, done.stderr
    draft = bundled_draft(Bundle.open(out))
    assert draft is not None and draft.config.head_rows == 40
    files = json.loads(plan.stdout)["files"]
    assert files["draft/weights.safetensors"] == (out / "draft" / "weights.safetensors").stat().st_size
    assert run_inside("export", "--check", str(out)).returncode == 0
    (out / "draft" / "manifest.json").write_text("{}")
    assert "draft/manifest.json' has 2 bytes" in run_inside("export", "--check", str(out)).stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--to", "gguf", "--draft", "random:eagle2"), "A draft belongs to `--to bundle`, not to gguf"),
        (("--to", "bundle", "--draft-vocabulary", "20"), "`--draft-vocabulary` belongs to `--draft`"),
        (("--to", "bundle", "--draft", "none"), "There is no draft 'none'"),
        (("--to", "bundle", "--draft", "random:eagle2", "--draft-vocabulary", "0"), "must have from 1 to"),
    ],
)
def test_exports_that_are_refused(
    run_inside: Callable[..., Any], tiny_checkpoint: Any, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_inside("export", str(tiny_checkpoint()), *options, "--out", str(tmp_path / "out"))
    assert done.returncode and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
