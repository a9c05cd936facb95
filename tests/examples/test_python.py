"""The Python programs of examples/, each in a process of its own, held against the same model in this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.config.tensors import HEAD
from edge.quant.scheme import QuantScheme
from edge.runtime import Model, load
from tests.export.tiny import llama_config, make_source, minicpm_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FACTS = r"\[(\d+) tokens.*, (\w+), prompt: (\d+) tokens, (\d+) of them in the cache\]"
# Runs a program where `edge` can't be imported.
ALONE = (
    "import runpy, sys; sys.modules['edge'] = None; sys.argv[:] = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`example(name, *arguments)`: the finished program, run in an empty folder."""

    def run(name: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=240, **more
        )

    return run


@contextmanager
def running(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The program while it runs, with pipes."""
    command = [sys.executable, "-u", str(EXAMPLES / name), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, encoding="utf-8", **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def smollm2_texts(path: Path, *messages: str) -> list[str]:
    """Greedy answers of one conversation."""
    with load(path, threads=2) as model:
        chat = model.chat(temperature=0)
        return [chat.send(message, max_new_tokens=400).text for message in messages]


def greedy(model: Model, question: str, count: int) -> str:
    return model.chat(temperature=0).send(question, max_new_tokens=count).text


def test_chat(example: Any, smollm2_gguf: Path):
    """A conversation that reuses its cache; an empty line is passed over, an error does not end it."""
    said = f"Say hello.\n\n{'long ' * 9000}\nAnd goodbye.\n"
    run = example("chat.py", smollm2_gguf, input=said)
    assert run.returncode == 0, run.stderr
    (first, _, prompt, cached), (_, _, longer, reused) = re.findall(FACTS, run.stdout)
    assert cached == "0" and int(longer) > int(prompt) + int(first) and int(reused) > int(prompt)
    assert len(re.findall("^(?:> )*Error: The message takes .+$", run.stdout, re.MULTILINE)) == 1
    run = example("chat.py", "nosuch")
    assert (
        run.returncode == 1 and run.stderr.startswith("Error: Unknown model") and run.stderr.count("\n") == 1
    )


def test_chat_is_interrupted(smollm2_gguf: Path):
    """Ctrl-C ends the answer and not the program, which remembers what there was of it."""
    with running("chat.py", smollm2_gguf) as process:
        assert process.stdin and process.stdout
        process.stdin.write("Write a very long story about a dog and a cat.\n")
        process.stdin.flush()
        begun = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate("And then?\n", timeout=240)
    assert process.returncode == 0 and errors == ""
    (_, reason, prompt, _), (_, _, _, reused) = re.findall(FACTS, begun + rest)
    assert reason == "cancelled" and int(reused) > int(prompt)


def test_asyncio(example: Any, smollm2_gguf: Path):
    """Both answers grow side by side, the slow one is cut off, and a chat goes on after a cancelled task."""
    run = example("stream_asyncio.py", smollm2_gguf)
    assert run.returncode == 0 and run.stderr == ""
    lines = run.stdout.splitlines()
    first, second = (
        [i for i, line in enumerate(lines) if line.startswith(name)] for name in ("first", "second")
    )
    assert first[0] < second[-1] and second[0] < first[-1]
    assert lines[second[-1]] == "second: time is up"
    (text,) = smollm2_texts(smollm2_gguf, "Why is the sky blue?")
    assert re.search(rf"^(eos|length) after \d+ tokens: {re.escape(repr(text))}$", run.stdout, re.MULTILINE)
    assert re.search(r"^cancelled after \d+ tokens: ", run.stdout, re.MULTILINE)
    assert re.fullmatch(r"cancelled: True, the chat has [24] messages", lines[-2])
    assert re.fullmatch(r"then: ['\"].+['\"]", lines[-1])


def test_asyncio_is_interrupted(smollm2_gguf: Path):
    with running("stream_asyncio.py", smollm2_gguf) as process:
        assert process.stdout
        assert re.match("first|second", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors == "Interrupted.\n"


def test_onnx(example: Any, tmp_path: Path):
    """The export, and then ONNX Runtime where nothing of this project can be imported."""
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    source = make_source(tmp_path, llama_config(max_position_embeddings=1024))
    out, question = tmp_path / "out", "what is the other"
    run = example("onnx_export_and_run.py", source.bundle.path, out, question)
    assert run.returncode == 0, run.stderr
    command = [
        sys.executable,
        "-c",
        ALONE,
        str(EXAMPLES / "onnx_export_and_run.py"),
        "nothing",
        str(out),
        question,
    ]
    alone = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert alone.returncode == 0, alone.stderr
    with load(out) as model:
        wanted = greedy(model, question, 100)
        assert len(wanted) > 20
    for found in (run.stdout, alone.stdout):
        text, _, facts = found.rpartition("\n[")
        assert text == wanted
        assert re.match(r"\d+ tokens in [\d.]+ s, \d+ after them at \d+ tokens/s\]\n", facts)


def letters_only(weights: dict[str, Any]) -> None:
    """A head that answers in visible ASCII: the runner prints nothing else of a token."""
    weights[HEAD][:3], weights[HEAD][3 + 126 - 32 :] = 0, 0


@pytest.mark.parametrize("flavour", ["portable", pytest.param("full", marks=pytest.mark.slow)])
def test_executorch(flavour: str, example: Any, tmp_path: Path):
    """The stock runner prints the text of our executor."""
    pytest.importorskip("executorch", reason="the package executorch is not installed")
    config = minicpm_config(num_hidden_layers=1, max_position_embeddings=512, eos_token_ids=(2,))
    source = make_source(tmp_path, config, head=QuantScheme("f16"), change=letters_only)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    run = example("executorch_run.py", source.bundle.path, out, flavour, env=environment)
    assert run.returncode == 0, run.stderr
    with load(out) as model:
        wanted = greedy(model, "Why is the sky blue?", 60)
    text = run.stdout.partition("\nPyTorchObserver")[0]
    assert len(text) == 60 and text == wanted
