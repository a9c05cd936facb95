"""The portable ONNX flavour in onnxruntime-web: under node, and in a browser on the page of the docs."""

from __future__ import annotations

import json
import os
import queue
import runpy
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.formats.artifact.folder import Artifact
from edge.hub.resolve import open_model
from edge.model.executor import TorchExecutor
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme
from edge.runtime import load
from edge.text.prompts import Message, PromptEncoder
from tests.steps import forward

from .tiny import make_source, minicpm_config

pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

PACKAGES = {
    "onnxruntime-web": "1.30.0",
    "@huggingface/tokenizers": "0.2.0",
    "@huggingface/jinja": "0.5.11",
}
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("onnx_web.mjs")
PAGE = ROOT / "docs" / "onnx-web"
MODULES = ROOT / "build" / "test-node"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
ROUNDED = 0.2  # as in test_onnx_portable.py
TIED = 0.1  # a token this near to the best one is as good: WebAssembly adds in another order

# The page in a frame: types a prompt, waits for the answer, and sends what the page shows to the server.
VISITOR = """<!doctype html><iframe></iframe><script>
  const given = GIVEN, frame = document.querySelector("iframe");
  frame.src = given.page;
  const shown = (id) => frame.contentDocument?.getElementById(id);
  const text = () => shown("status")?.textContent ?? "";
  const until = async (start) => {
    while (!text().startsWith(start) && !text().startsWith("Failed"))
      await new Promise((resolve) => setTimeout(resolve, 50));
  };
  (async () => {
    await until("Ready");
    if (text() === "Ready") {
      shown("prompt").value = given.prompt;
      shown("send").click();
      await until(given.tokens);
    }
    const { textContent: answer, dataset } = shown("answer");
    const found = { status: text(), answer, tokens: dataset.tokens };
    await fetch("/found", { method: "POST", body: JSON.stringify(found) });
  })();
</script>"""


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder with the packages that the page uses, fetched once."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    package, wanted = MODULES / "package.json", json.dumps({"private": True, "dependencies": PACKAGES})
    if not package.is_file() or package.read_text() != wanted:
        MODULES.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save"]
        command += [f"{name}@{version}" for name, version in PACKAGES.items()]
        try:
            subprocess.run(command, cwd=MODULES, check=True, capture_output=True, timeout=120)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm can't fetch onnxruntime-web ({error})")
        package.write_text(wanted)
    return MODULES


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g32-min", "ternary-g128", "int8-g32"])
def test_logits_in_webassembly(scheme, node_modules, minicpm, make_bundle, export_bundle, tokens_of):
    bundle = make_bundle(minicpm(), QuantScheme.parse(scheme), tokenizer=True)
    artifact = export_bundle(bundle, "onnx", portable=True, context=128)
    tokens = tokens_of(bundle.config, 20)
    run = subprocess.run(
        ["node", str(SCRIPT), str(node_modules), str(artifact.path), json.dumps(tokens.tolist())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    whole, stepped = (np.array(row, np.float32) for row in json.loads(run.stdout.splitlines()[-1]))
    reference = TorchExecutor(reference_from_bundle(bundle, 128))
    truth = forward(reference, reference.new_cache(), tokens).logits[0]
    assert np.abs(whole - truth).max() / truth.std() < ROUNDED
    assert np.abs(stepped - whole).max() / truth.std() < 1e-3


def test_the_page_of_the_docs_in_a_browser(browser, node_modules, tmp_path):
    """A tokenizer that puts a BOS in front, as MiniCPM4's does."""
    source = make_source(tmp_path, minicpm_config(eos_token_ids=(2,)))
    artifact = export_model(source, ExportOptions("onnx", portable=True, context=128), tmp_path / "out")
    found = visit(browser, node_modules, artifact.path, "what is it", 12, timeout=60)
    ids = load(artifact.path).tokenizer.encode("what is it")
    assert ids[0] == 1
    assert len(found["tokens"]) == 12 and max(distances_to_best(artifact, ids, found["tokens"])) < TIED, found
    assert found["status"].startswith("12 tokens")


def test_what_fails_is_shown_on_the_page(browser, node_modules, tmp_path):
    source = make_source(tmp_path, minicpm_config(num_hidden_layers=1))
    artifact = export_model(source, ExportOptions("onnx", portable=True, context=16), tmp_path / "out")
    found = visit(browser, node_modules, artifact.path, "a question that is too long", 12, timeout=60)
    assert found["status"] == "Failed: The context of 16 tokens is full." and found["answer"] == ""


@pytest.mark.slow
def test_a_whole_model_in_a_browser(browser, node_modules, smollm2_gguf, export_bundle):
    """SmolLM2-135M in Chromium: every token of its answer is the likeliest of our executor, or as good as."""
    question = "Why is the sky blue?"
    artifact = export_bundle(open_model(smollm2_gguf), "onnx", portable=True, context=1024)
    found = visit(browser, node_modules, artifact.path, question, 12, timeout=400)
    with load(artifact.path) as model:
        prompt = PromptEncoder(model.chat_template, model.tokenizer).encode([Message("user", question)])
        assert found["answer"] == model.tokenizer.decode(found["tokens"])
    assert len(found["tokens"]) == 12 and max(distances_to_best(artifact, prompt, found["tokens"])) < TIED


def distances_to_best(artifact: Artifact, prompt: list[int], tokens: list[int]) -> list[float]:
    """How far below our executor's best logit each of the tokens is, in standard deviations of the logits."""
    executor = open_executor(artifact, RunOptions(threads=1))
    cache, given, found = executor.new_cache(), prompt, []
    for token in tokens:
        logits = forward(executor, cache, given).logits[0]
        found.append(float((logits.max() - logits[token]) / logits.std()))
        given = [token]
    return found


def visit(
    browser: str, modules: Path, model: Path, prompt: str, tokens: int, timeout: float
) -> dict[str, Any]:
    """The docs' page in the browser, served with the docs' server: what it shows after an answer."""
    page = f"/index.html?folder=model&tokens={tokens}"
    with served(modules, model, {"page": page, "prompt": prompt, "tokens": f"{tokens} tokens"}) as (
        url,
        found,
    ):
        profile = tempfile.mkdtemp(prefix="edge-browser-")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", url]
        log = Path(profile, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            return found.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(log.read_text(errors="replace")[-2000:]) from None
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # Debian's browser is a script, which outlives its signal
            process.wait(20)
            shutil.rmtree(profile, ignore_errors=True)


@contextmanager
def served(
    modules: Path, model: Path, given: dict[str, Any]
) -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """The address of the visitor's page, and where what it finds arrives."""
    handler: Any = runpy.run_path(str(PAGE / "serve.py"))["Handler"]
    found: queue.Queue[dict[str, Any]] = queue.Queue()

    class Visited(handler):
        def do_GET(self) -> None:
            if self.path != "/visitor.html":
                super().do_GET()
                return
            body = VISITOR.replace("GIVEN", json.dumps(given)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            document["tokens"] = json.loads(document.get("tokens", "[]"))
            found.put(document)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch)
        for name in ("index.html", "decoder.mjs"):
            shutil.copy(PAGE / name, site)
        (site / "node_modules").symlink_to(modules / "node_modules")
        (site / "model").symlink_to(model)
        server = ThreadingHTTPServer(("localhost", 0), partial(Visited, directory=scratch))
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_address[1]}/visitor.html", found
        finally:
            server.shutdown()
            server.server_close()
