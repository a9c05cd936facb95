"""Checkpoints from a hub on localhost, with the hub's own client: its cache, refusals, and no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import CheckpointError
from edge.hub.resolve import open_model
from tests.hub_server import Hub
from tests.tiny_checkpoint import write_shards

Open = Callable[..., dict[str, Any]]


def test_hub_download_cache_and_offline(hub: Hub, edge_open: Open) -> None:
    missing = edge_open(hub.url, "org/tiny", {"offline": True})
    assert missing["error"] == "CheckpointError" and "offline mode is on" in missing["message"]
    assert hub.requests == []

    first = edge_open(hub.url, "org/tiny", {})
    assert first["path"].startswith("org-tiny-") and first["source"] == "org/tiny", first
    fetched = {
        request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET /org/tiny/resolve")
    }
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}

    hub.requests.clear()
    assert edge_open(hub.url, "org/tiny", {"offline": True}) == first
    assert edge_open(hub.url, "org/tiny", {}, HF_HUB_OFFLINE="1") == first
    assert hub.requests == []
    pinned = edge_open(hub.url, "org/tiny", {"revision": Hub.COMMIT})
    assert pinned["source"] == f"org/tiny@{Hub.COMMIT}"
    assert not any("model.safetensors" in request and "GET" in request for request in hub.requests)

    hub.requests.clear()
    assert edge_open(hub.url, "org/tiny", {"revision": Hub.COMMIT}) == pinned
    assert hub.requests == []  # a commit never changes
    assert edge_open(hub.url, "org/tiny", {}) == first
    assert len(hub.requests) == 1  # whether the branch has moved

    hub.broken = True  # an earlier download serves when the hub does not answer
    assert edge_open(hub.url, "org/tiny", {}) == first

    hub.broken, hub.main = False, Hub.LATER
    moved = edge_open(hub.url, "org/tiny", {})
    assert moved["source"] == "org/tiny" and moved["path"] != first["path"]
    hub.requests.clear()
    edge_open(hub.url, "org/tiny", {"revision": Hub.EARLIER})
    assert any(f"/resolve/{Hub.EARLIER}/model.safetensors" in request for request in hub.requests)
    assert not any(f"/{other}" in request for request in hub.requests for other in ("main", Hub.LATER))


def test_small_files_are_checked_before_weights_are_downloaded(hub: Hub, edge_open: Open) -> None:
    (hub.root / "org" / "tiny" / "generation_config.json").write_text('{"top_p": "most"}')
    refused = edge_open(hub.url, "org/tiny", {})
    assert refused["error"] == "ConfigError" and "'top_p' in generation_config.json" in refused["message"]
    assert any("tokenizer.json" in request for request in hub.requests)
    assert not any("model.safetensors" in request for request in hub.requests)


@pytest.mark.parametrize("file_list", [True, False], ids=["file list", "no file list"])
@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_an_interrupted_download_is_completed(
    hub: Hub, edge_open: Open, tmp_path: Path, lost: str, file_list: bool
) -> None:
    """Whether or not the hub's client has kept a list of the files, as its newer versions do."""
    write_shards(hub.root / "org" / "sharded")
    first = edge_open(hub.url, "org/sharded", {})
    assert first["source"] == "org/sharded", first
    (snapshot,) = (tmp_path / "hf").glob(f"hub/models--org--sharded/snapshots/{Hub.COMMIT}")
    assert len(list(snapshot.glob("model-*"))) == 2
    if not file_list:
        shutil.rmtree(snapshot.parents[1] / "trees", ignore_errors=True)
    link = snapshot / lost
    link.resolve().unlink()
    link.unlink()

    found = edge_open(hub.url, "org/sharded", {"offline": True})
    assert found["error"] == "CheckpointError"
    assert "downloaded only in part" in found["message"] and "run once online" in found["message"]
    hub.broken = True
    assert "Cannot reach" in edge_open(hub.url, "org/sharded", {})["message"]
    hub.broken = False
    assert edge_open(hub.url, "org/sharded", {"revision": Hub.COMMIT})["source"] == (
        f"org/sharded@{Hub.COMMIT}"
    )
    assert link.is_file()
    assert edge_open(hub.url, "org/sharded", {"offline": True})["source"] == "org/sharded"


def test_hub_refusals(hub: Hub, edge_open: Open) -> None:
    for spec, options, message in (
        ("org/unknown", {}, "There is no model 'org/unknown' on the hub"),
        ("org/tiny", {"revision": "v9"}, "no revision 'v9'"),
        ("org/gated", {}, "'org/gated' is gated: accept its terms"),
    ):
        found = edge_open(hub.url, spec, options)
        assert found["error"] == "CheckpointError" and message in found["message"], found
        assert "\n" not in found["message"]


def test_a_mistyped_path_that_looks_like_a_hub_id() -> None:
    with pytest.raises(
        CheckpointError, match=r"There is no file or folder 'tests/absent\.gguf', and as a hub id"
    ):
        open_model("tests/absent.gguf", offline=True)


def test_no_network(edge_open: Open) -> None:
    found = edge_open("http://127.0.0.1:9", "org/tiny", {})
    assert found["error"] == "CheckpointError"
    assert found["message"].startswith("Cannot reach http://127.0.0.1:9 to download 'org/tiny'")
    assert "check the network" in found["message"] and "\n" not in found["message"]
