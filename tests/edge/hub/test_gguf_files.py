"""GGUF files named on a hub on localhost, with the hub's own client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import CheckpointError
from edge.hub.gguf_files import split_name
from edge.hub.resolve import open_model
from tests.fuzz.seeds import gguf_file
from tests.hub_server import Hub
from tests.split_gguf import split_gguf

Open = Callable[..., dict[str, Any]]
FILES = (
    "Tiny-IQ4_K_M.gguf",
    "Tiny-Q4_K_M.gguf",
    "Tiny-Q8_0.gguf",
    "more/Tiny-F16.gguf",
    "more/tiny.q8_0.GGUF",
)
PARTS = ("Tiny-BF16-00001-of-00002.gguf", "Tiny-BF16-00002-of-00002.gguf")


@pytest.fixture
def repo(hub: Hub) -> Path:
    """`org/files`, which has GGUF files and nothing else to run."""
    folder = hub.root / "org" / "files"
    folder.mkdir()
    gguf_file(folder)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "m.gguf", folder / name)
    assert [part.name for part in split_gguf(folder / "m.gguf", folder / "Tiny-BF16.gguf", 8)] == list(PARTS)
    (folder / "m.gguf").unlink()
    (folder / "README.md").write_text("not wanted")
    return folder


def downloads(hub: Hub) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/repo", ("owner/repo", None)),
        ("owner/repo:file.gguf", ("owner/repo", "file.gguf")),
        ("owner/repo:sub/file-Q4_K_M.gguf", ("owner/repo", "sub/file-Q4_K_M.gguf")),
        ("owner/re.po-1:Q4_K_M", ("owner/re.po-1", "Q4_K_M")),
        (r"C:\models\m.gguf", None),
        ("C:/models/m.gguf", None),
        ("./owner/repo:file.gguf", None),
        ("a/b/c:file.gguf", None),
        ("random:minicpm4-8b", None),
        ("owner/repo:", None),
    ],
)
def test_the_form_of_a_name(text: str, name: tuple[str, str | None] | None) -> None:
    assert split_name(text) == name


def test_a_file_by_its_name(hub: Hub, repo: Path, edge_open: Open) -> None:
    first = edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {})
    assert first["source"] == "org/files:more/Tiny-F16.gguf", first
    assert first["path"].startswith("org-files-more-Tiny-F16.gguf-")
    assert downloads(hub) == ["GET /org/files/resolve/main/more/Tiny-F16.gguf"]

    hub.requests.clear()
    assert edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {}) == first
    assert len(hub.requests) == 1  # whether the branch has moved
    assert edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {"offline": True}) == first
    assert edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {}, HF_HUB_OFFLINE="1") == first
    assert len(hub.requests) == 1
    hub.broken = True  # an earlier download serves when the hub does not answer
    assert edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {}) == first

    hub.broken, hub.main = False, Hub.LATER
    (repo / "more" / "Tiny-F16.gguf").write_bytes(b"GGUF and nothing more")
    moved = edge_open(hub.url, "org/files:more/Tiny-F16.gguf", {})
    assert moved["error"] == "CheckpointError" and Hub.LATER in moved["message"]
    pinned = edge_open(hub.url, "org/files:Tiny-Q8_0.gguf", {"revision": Hub.COMMIT})
    assert pinned["source"] == f"org/files:Tiny-Q8_0.gguf@{Hub.COMMIT}", pinned
    hub.requests.clear()
    assert edge_open(hub.url, "org/files:Tiny-Q8_0.gguf", {"revision": Hub.COMMIT}) == pinned
    assert hub.requests == []  # a commit never changes


def test_a_quantization_that_one_file_has(hub: Hub, repo: Path, edge_open: Open) -> None:
    """As llama.cpp and Ollama name one; letters of any size."""
    found = edge_open(hub.url, "org/files:q4_k_m", {})
    assert found["source"] == "org/files:Tiny-Q4_K_M.gguf", found
    assert edge_open(hub.url, "org/files:Tiny-Q4_K_M.gguf", {"offline": True}) == found
    assert edge_open(hub.url, "org/files:Q4_K_M", {"offline": True}) == found
    assert edge_open(hub.url, "org/files:F16", {})["source"] == "org/files:more/Tiny-F16.gguf"
    assert edge_open(hub.url, "org/files:Q8_0", {})["message"] == (
        "'org/files:Q8_0' fits several files; name one of them: org/files:Tiny-Q8_0.gguf, "
        "org/files:more/tiny.q8_0.GGUF."
    )
    assert not any("q8_0" in request.lower() for request in downloads(hub))
    for file in ("Tiny-Q8_0.gguf", "more/tiny.q8_0.GGUF"):
        assert edge_open(hub.url, f"org/files:{file}", {})["source"] == f"org/files:{file}"
    assert "fits several files" in edge_open(hub.url, "org/files:Q8_0", {"offline": True})["message"]


def test_a_file_in_parts(hub: Hub, repo: Path, edge_open: Open) -> None:
    """Any part and the quantization name the whole; what came only in part is completed."""
    whole, name = f"org/files:{PARTS[0]}", PARTS[1]
    found = edge_open(hub.url, f"org/files:{name}", {})
    assert found["source"] == whole and found["path"].startswith("org-files-Tiny-BF16-"), found
    assert sorted(downloads(hub)) == [
        f"GET /org/files/resolve/{revision}/{part}"
        for revision, part in sorted(zip((Hub.COMMIT, "main"), reversed(PARTS), strict=True))
    ]
    hub.requests.clear()
    for again in ("BF16", *PARTS):
        assert edge_open(hub.url, f"org/files:{again}", {}) == found
        assert edge_open(hub.url, f"org/files:{again}", {"offline": True}) == found
    assert downloads(hub) == []
    pinned = edge_open(hub.url, f"org/files:{PARTS[1]}", {"revision": Hub.COMMIT})
    assert pinned["source"] == f"{whole}@{Hub.COMMIT}", pinned

    (snapshot,) = (hub.root.parent / "hf").rglob(f"{Hub.COMMIT}/{PARTS[1]}")
    snapshot.unlink()
    offline = edge_open(hub.url, f"org/files:{name}", {"offline": True})
    assert f"'org/files:{name}' has not been downloaded yet" in offline["message"]
    assert edge_open(hub.url, f"org/files:{name}", {}) == found


def test_a_repository_that_lacks_a_part(hub: Hub, repo: Path, edge_open: Open) -> None:
    for part in PARTS:
        kept = (repo / part).read_bytes()
        (repo / part).unlink()
        found = edge_open(hub.url, "org/files:BF16", {})
        assert found["message"] == (
            f"'org/files:{PARTS[0]}' is a GGUF file of 2 parts, and '{part}' is not on the hub; choose "
            "another file or model."
        )
        (repo / part).write_bytes(kept)
    assert downloads(hub) == []


@pytest.mark.parametrize("by", ["plan_model", "open_checkpoint"])
def test_whatever_opens_a_model_takes_such_names(hub: Hub, repo: Path, edge_open: Open, by: str) -> None:
    found = edge_open(hub.url, "org/files:Q4_K_M", {"by": by})
    assert found["source"] == "org/files:Tiny-Q4_K_M.gguf", found


def test_from_the_command_line(hub: Hub, repo: Path, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}

    def edge(*words: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "edge", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
            env={**inherited, **environment},
        )
        return run.stdout

    facts = json.loads(edge("inspect", "org/files:more/Tiny-F16.gguf", "--json").splitlines()[-1])
    assert (facts["model"], facts["source"]) == ("org/files:more/Tiny-F16.gguf",) * 2
    assert "org-files-more-Tiny-F16.gguf" in edge("cache", "list")


def test_refusals_say_what_there_is_and_download_nothing(hub: Hub, repo: Path, edge_open: Open) -> None:
    whole = "org/files:Tiny-IQ4_K_M.gguf, org/files:Tiny-Q4_K_M.gguf, org/files:Tiny-Q8_0.gguf"
    for spec, options, *messages in (
        ("org/files", {}, "'org/files' on the hub has its weights in GGUF files only; name one", whole),
        ("org/files:Tiny-Q5_K_M.gguf", {}, "no GGUF file 'Tiny-Q5_K_M.gguf'; name one of those that it has"),
        ("org/files:Tiny-Q5_K_M.gguf", {}, "has: org/files:Tiny-Q4_K_M.gguf, "),  # the likest first
        ("org/files:Q5_K_M", {}, "no GGUF file 'Q5_K_M'"),
        ("org/files:tiny-q8_0.gguf", {}, "no GGUF file 'tiny-q8_0.gguf'", "has: org/files:"),
        ("org/files:../../x.gguf", {}, "no GGUF file '../../x.gguf'"),
        ("org/files:Tiny-BF16-00003-of-00003.gguf", {}, "no GGUF file 'Tiny-BF16-00003-of-00003.gguf'"),
        ("org/tiny:Q4_K_M", {}, "'org/tiny' on the hub has no GGUF files; leave ':Q4_K_M' out"),
        ("org/unknown:Q4_K_M", {}, "There is no model 'org/unknown' on the hub"),
        ("org/files:Q4_K_M", {"revision": "v9"}, "no revision 'v9'"),
        ("org/files:Q4_K_M", {"offline": True}, "'org/files:Q4_K_M' has not been downloaded yet"),
        ("org/files:../../x.gguf", {"offline": True}, "has not been downloaded yet"),
    ):
        found = edge_open(hub.url, spec, dict(options))
        assert found["error"] == "CheckpointError" and "\n" not in found["message"], (spec, found)
        assert all(message in found["message"] for message in messages), (spec, found)
    assert downloads(hub) == []


def test_gated_files_and_no_network(hub: Hub, repo: Path, edge_open: Open) -> None:
    shutil.copytree(repo, hub.root / "org" / "gated-files")
    gated = edge_open(hub.url, "org/gated-files:Q4_K_M", {})
    assert "'org/gated-files' is gated: accept its terms" in gated["message"]
    found = edge_open("http://127.0.0.1:9", "org/files:Q4_K_M", {})
    assert found["message"].startswith("Cannot reach http://127.0.0.1:9 to download 'org/files:Q4_K_M'")


def test_a_repository_whose_file_was_downloaded_is_no_checkpoint_offline(
    hub: Hub, repo: Path, edge_open: Open
) -> None:
    """What there is of it is named; what else the hub has is not claimed."""
    edge_open(hub.url, "org/files:Q4_K_M", {})
    found = edge_open(hub.url, "org/files", {"offline": True})
    said = (
        "'org/files' has not been downloaded yet except as org/files:Tiny-Q4_K_M.gguf and offline mode is on"
    )
    assert found["message"].startswith(said)


def test_many_files_are_not_all_listed(hub: Hub, repo: Path, edge_open: Open) -> None:
    for number in range(20):
        (repo / f"Z{number}.gguf").touch()
    assert edge_open(hub.url, "org/files", {})["message"].endswith(" and 14 more.")


def test_a_path_with_a_colon_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    gguf_file(tmp_path / "org")
    (tmp_path / "org" / "m.gguf").rename(tmp_path / "org" / "files:Q4_K_M")
    assert open_model("org/files:Q4_K_M").source == "org/files:Q4_K_M"
    with pytest.raises(CheckpointError, match=r"no file or folder 'org/files:Q8_0', and as a hub id: 'org/f"):
        open_model("org/files:Q8_0", offline=True)
    with pytest.raises(CheckpointError, match=r"Unknown model 'C:\\models\\m\.gguf'"):
        open_model("C:\\models\\m.gguf")
