"""examples/browser in a real browser: answers, Stop, what it says of itself, and how it looks on a phone."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.hub.resolve import open_model
from edge.runtime import load
from edge.text.prompts import Message, PromptEncoder
from tests.browser import CONTROL, Page, browser, page
from tests.export.tiny import llama_config, make_source, minicpm_config
from tests.steps import forward

pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
SERVER: Any = runpy.run_path(str(EXAMPLE / "serve.py"))["Handler"]
TIED = 0.1  # a token this near to the best one is as good: WebAssembly adds in another order
PHONE = (390, 844)
LONG = 4000  # tokens that the tiny model would write, were it not stopped

STATUS = "document.querySelector('#status').textContent"
FIGURES = "document.querySelector('#figures').textContent"
ANSWERS = "[...document.querySelectorAll('.assistant')].map((each) => each.textContent)"
TOKENS = (
    "[...document.querySelectorAll('.assistant')].map((each) => each.dataset.tokens.split(',').map(Number))"
)
# Remembers every status, and how long the page's thread was ever busy.
WATCH = """(() => {
  window.seen = [], window.longest = 0;
  const status = document.querySelector("#status");
  new MutationObserver(() => seen.push(status.textContent)).observe(status, { childList: true });
  let last = performance.now();
  setInterval(() => { longest = Math.max(longest, performance.now() - last); last = performance.now(); }, 5);
})()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    program = browser()
    if program is None:
        pytest.skip("no Chromium is installed; scripts/install-test-packages installs it")
    with page(program) as found:
        yield found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two layers, and a tokenizer that puts a BOS in front, as MiniCPM4's does."""
    folder = tmp_path_factory.mktemp("tiny")
    source = make_source(folder, minicpm_config(eos_token_ids=(2,)))
    return export_model(source, ExportOptions("onnx", portable=True, context=128), folder / "out")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One layer with a long context, and no end token that it comes across."""
    folder = tmp_path_factory.mktemp("endless")
    config = llama_config(num_hidden_layers=1, max_position_embeddings=2 * LONG, eos_token_ids=(2,))
    return export_model(make_source(folder, config), ExportOptions("onnx", portable=True), folder / "out")


@contextmanager
def served(folder: Path, handler: Any = SERVER) -> Iterator[str]:
    """The address of the folder, behind the server of the example or another one."""

    class Quiet(handler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/index.html"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(node_modules: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """`site(model)`: a folder as the example's README says to make one."""

    def make(model: Path) -> Path:
        folder = tmp_path / "site"
        shutil.copytree(EXAMPLE, folder)
        (folder / "node_modules").symlink_to(node_modules / "node_modules")
        (folder / "model").symlink_to(model)
        return folder

    return make


def ready(chromium: Page, url: str) -> str:
    """Opens the page; what it says once the model is loaded, or that it failed."""
    chromium.look(*PHONE, phone=True)
    chromium.open(url)
    chromium.wait("document.querySelector('#status') !== null")
    chromium.evaluate(WATCH)
    return str(chromium.wait(f"/^(Ready|Failed)/.test({STATUS}) && {STATUS}", 120))


def send(chromium: Page, text: str) -> None:
    """Types over what stands in the box, and sends it from the keyboard."""
    chromium.evaluate("document.querySelector('#prompt').select()")
    chromium.type(text)
    chromium.press("Enter", CONTROL)


def ended(chromium: Page, timeout: float = 60) -> str:
    chromium.wait("document.querySelector('#stop').disabled", timeout)
    return str(chromium.evaluate(STATUS))


def distances_to_best(artifact: Artifact, prompt: list[int], tokens: list[int]) -> list[float]:
    """How far below our executor's best logit each of the tokens is, in standard deviations of the logits."""
    executor = open_executor(artifact, RunOptions(threads=1))
    cache, given, found = executor.new_cache(), prompt, []
    for token in tokens:
        logits = forward(executor, cache, given).logits[0]
        found.append(float((logits.max() - logits[token]) / logits.std()))
        given = [token]
    executor.close()
    return found


def test_a_conversation(chromium: Page, site: Any, tiny: Artifact):
    """Each answer is the likeliest one after all that was said, and the second turn reuses the cache."""
    with served(site(tiny.path)) as url:
        assert ready(chromium, f"{url}?tokens=12&threads=2") == "Ready"
        assert chromium.evaluate(FIGURES) == "2 threads"
        questions = ["what is it", " and then what"]
        for question in questions:
            send(chromium, question)
            assert ended(chromium) == "Ended at the limit of 12 tokens"
            assert re.fullmatch(r"\d+\.\d tokens/s, 2 threads", chromium.evaluate(FIGURES))
        answers, tokens, seen = (chromium.evaluate(each) for each in (ANSWERS, TOKENS, "seen"))
    with load(tiny.path) as model:
        encode = model.tokenizer.encode
        first, second = encode(questions[0]), encode(questions[0] + answers[0] + questions[1])
    assert first[0] == 1
    for prompt, made in zip((first, second), tokens, strict=True):
        assert len(made) == 12 and max(distances_to_best(tiny, prompt, made)) < TIED
    computed = [int(n) for text in seen for n in re.findall(r"Computing the prompt \((\d+) token", text)]
    assert computed[0] == len(first) and computed[-1] <= len(second) - len(first)
    assert seen[0] == "Loading the model" and {"Starting the model", "Writing"} < set(seen)


def test_stop(chromium: Page, site: Any, endless: Artifact):
    """By the button and by Esc: at once, the text stays, and the next message is answered."""
    with served(site(endless.path)) as url:
        assert ready(chromium, f"{url}?tokens={LONG}&threads=1") == "Ready"
        send(chromium, "what is it")
        chromium.wait(f"{STATUS} === 'Writing' && parseInt({FIGURES}) > 5")
        assert chromium.evaluate("document.querySelector('#send').disabled") is True
        chromium.click("#stop")
        first = ended(chromium, 5)
        send(chromium, "and then what")
        chromium.wait(f"{STATUS} === 'Writing' && parseInt({FIGURES}) > 5")
        chromium.press("Escape")
        second = ended(chromium, 5)
        answers, tokens = chromium.evaluate(ANSWERS), chromium.evaluate(TOKENS)
        assert chromium.evaluate("longest") < 500  # milliseconds: the page was awake all the time
        chromium.click("#fresh")
        assert chromium.evaluate(f"{ANSWERS}.length") == 0
    for status, answer, made in zip((first, second), answers, tokens, strict=True):
        assert status == f"Stopped after {len(made)} tokens"
        assert 5 < len(made) < LONG / 2 and len(answer) > 5


def test_stop_while_the_prompt_is_computed(chromium: Page, site: Any, endless: Artifact):
    """Nothing was answered, so the message is back in the box."""
    question = "what is it " * 500
    with served(site(endless.path)) as url:
        assert ready(chromium, f"{url}?threads=1") == "Ready"
        send(chromium, question)
        chromium.wait(
            f"{STATUS}.startsWith('Computing the prompt (') && document.querySelector('#bar').value > 0"
        )
        chromium.click("#stop")
        assert ended(chromium, 5) == "Stopped after 0 tokens"
        assert chromium.evaluate("document.querySelector('#prompt').value") == question
        assert chromium.evaluate(ANSWERS) == []


def test_what_fails_is_said(chromium: Page, site: Any, tiny: Artifact, tmp_path: Path):
    folder = site(tiny.path)
    with served(folder) as url:
        assert ready(chromium, url) == "Ready"
        send(chromium, "a question that is too long" * 10)
        said = ended(chromium)
        assert re.fullmatch(
            r"Failed: The conversation takes \d+ tokens and the context holds 128: begin a new chat\.", said
        )
        assert chromium.evaluate(ANSWERS) == []
        send(chromium, "a short one")
        chromium.wait(f"{STATUS} === 'Writing'")  # it goes on
        said = ready(chromium, f"{url}?folder=nowhere")
        assert said.startswith("Failed: nowhere/genai_config.json: 404 File not found; export a model there")
        assert chromium.evaluate("document.querySelector('#send').disabled") is True
    (folder / "node_modules").unlink()
    with served(folder) as url:  # elsewhere, since the browser keeps modules
        assert ready(chromium, url).endswith("did npm install run?")


def test_a_full_context_ends_an_answer(chromium: Page, site: Any, tiny: Artifact):
    with served(site(tiny.path)) as url:
        assert ready(chromium, f"{url}?tokens=500&threads=1") == "Ready"
        send(chromium, "what is it")
        assert re.fullmatch(r"Context full after \d+ tokens, begin a new chat", ended(chromium))


def test_other_servers_get_one_thread(chromium: Page, site: Any, tiny: Artifact):
    """Without the two headers, and the page says so."""
    with served(site(tiny.path), SimpleHTTPRequestHandler) as url:
        assert ready(chromium, f"{url}?threads=2") == "Ready"
        assert chromium.evaluate(FIGURES).startswith("1 thread (the page is not cross-origin isolated")


CONTRAST = """(selector) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const element = document.querySelector(selector), behind = [];
  for (let each = element; each; each = each.parentElement)
    behind.unshift(getComputedStyle(each).backgroundColor);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (colours) => {
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const both = [luminance(behind), luminance([...behind, getComputedStyle(element).color])];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""
RIGHT = "Math.max(...[...document.querySelectorAll('*')].map((each) => each.getBoundingClientRect().right))"
SMALLEST = (
    "Math.min(...[...document.querySelectorAll('body *')].map((each) => parseFloat(getComputedStyle(each)"
    ".fontSize)))"
)


def contrast(chromium: Page, selector: str) -> float:
    """Of an element's text with what is behind it, as WCAG defines it."""
    return float(chromium.evaluate(f"({CONTRAST})({json.dumps(selector)})"))


def test_it_fits_a_phone_and_the_colours_of_its_user(chromium: Page, site: Any, tiny: Artifact):
    """No sideways scrolling, text of 14 pixels or more, legible in light and dark, a label for the box."""
    with served(site(tiny.path)) as url:
        assert ready(chromium, f"{url}?tokens=40") == "Ready"
        send(chromium, "w" * 100)  # a word that is wider than the phone
        ended(chromium)
        assert chromium.evaluate("document.querySelector('#prompt').labels[0].textContent") == "Your message"
        assert chromium.evaluate("document.querySelector('[role=status]').id") == "status"
        colours = set()
        for size, phone, dark in ((PHONE, True, False), (PHONE, True, True), ((1280, 800), False, False)):
            chromium.look(*size, phone=phone, dark=dark)
            assert chromium.evaluate("document.documentElement.scrollWidth") == size[0]
            assert chromium.evaluate(RIGHT) <= size[0] and chromium.evaluate(SMALLEST) >= 14
            for selector in ("h1", ".user", ".assistant", "#prompt", "#send", "#fresh", "#status", "label"):
                assert contrast(chromium, selector) > 4.5, (selector, dark)
            colours.add(chromium.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(colours) == 2


@pytest.mark.slow
def test_a_whole_model(chromium: Page, site: Any, smollm2_gguf: Path, tmp_path: Path):
    """SmolLM2-135M: every token of its answer is the likeliest of our executor, or as good as."""
    question = "Why is the sky blue?"
    options = ExportOptions("onnx", portable=True, context=1024)
    artifact = export_model(Source(open_model(smollm2_gguf)), options, tmp_path / "model")
    with served(site(artifact.path)) as url:
        assert ready(chromium, f"{url}?tokens=12") == "Ready"
        send(chromium, question)
        ended(chromium, 400)
        (answer,), (tokens,) = chromium.evaluate(ANSWERS), chromium.evaluate(TOKENS)
    with load(artifact.path) as model:
        prompt = PromptEncoder(model.chat_template, model.tokenizer).encode([Message("user", question)])
        assert answer == model.tokenizer.decode(tokens)
    assert len(tokens) == 12 and max(distances_to_best(artifact, prompt, tokens)) < TIED
