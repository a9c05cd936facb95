"""A bundle without Python: `edge_generate` on exported folders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.quant.scheme import QuantScheme
from tests.oak import OAK, oak, registered
from tests.steps import forward

from .tiny import llama_config, make_source, minicpm_config

PROMPT, ANSWER = 190, 12
SPARSE = SparseConfig(dense_len=64, window_size=64, init_blocks=0, topk=1)
CASES = [
    pytest.param(minicpm_config(), QuantScheme("int4", 32), id="longrope-int4"),
    pytest.param(
        llama_config(num_hidden_layers=1, rope=RopeConfig(type="linear", factor=3.0)),
        QuantScheme("ternary", 128),
        id="linear-ternary",
    ),
    pytest.param(
        llama_config(sparse=SPARSE, max_position_embeddings=400), QuantScheme("int8", 0), id="sparse"
    ),
    pytest.param(
        oak(
            llama_config(
                rope=RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64, rotary_dim=48)
            )
        ),
        QuantScheme("int4", 32),
        id="beyond-a-llama",
    ),
]


@pytest.fixture(autouse=True)
def families() -> Iterator[None]:
    with registered(OAK):
        yield


@pytest.fixture
def generate(tool: Callable[[str], Path]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`generate(folder, count, *tokens)`: the finished process."""

    def run(folder: Path, *numbers: object) -> subprocess.CompletedProcess[str]:
        command = [str(tool("edge_generate")), str(folder), *map(str, numbers)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


def greedy(executor: NativeExecutor, tokens: list[int], count: int) -> list[int]:
    cache, given, made = executor.new_cache(), tokens[128:], []
    forward(executor, cache, tokens[:128], logits="none")
    while len(made) < count:
        logits = forward(executor, cache, given).logits
        assert logits is not None
        given = [int(logits[-1].argmax())]
        made += given
    return made


@pytest.mark.parametrize(("config", "scheme"), CASES)
def test_the_tokens_of_the_native_executor(
    generate: Any, tmp_path: Path, config: ModelConfig, scheme: QuantScheme
):
    """Rotary frequencies, scales, context and sparse attention are all in the folder."""
    source = make_source(tmp_path, config, scheme)
    artifact = export_model(source, ExportOptions("bundle"), tmp_path / "out")
    length = 300 if config.sparse else PROMPT
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 258, length)]
    executor = open_executor(source.bundle, RunOptions(threads=1, kv_type="float16"))
    assert (executor.info.sparse is not None) == (config.sparse is not None)
    wanted = greedy(executor, tokens, ANSWER)
    executor.close()
    done = generate(artifact.path, ANSWER, *tokens)
    assert done.returncode == 0, done.stderr
    found = [int(line) for line in done.stdout.split()]
    assert found == wanted[: len(found)]
    assert len(found) == ANSWER or found[-1] in config.eos_token_ids


@pytest.mark.slow
def test_on_arm(generate: Any, arm: Any, tmp_path: Path):
    """Static, in the emulator of a phone's processor."""
    folder = export_model(
        make_source(tmp_path, minicpm_config()), ExportOptions("bundle"), tmp_path / "out"
    ).path
    command = [*arm.emulator("max"), str(arm.make("edge_generate")), str(folder), "5", "5", "6", "7"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout == generate(folder, 5, 5, 6, 7).stdout


def test_it_ends_with_an_end_token(generate: Any, tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    artifact = export_model(source, ExportOptions("bundle"), tmp_path / "out")
    (first,) = generate(artifact.path, 1, 5, 6, 7).stdout.split()
    decoder = artifact.path / "decoder.json"
    document = json.loads(decoder.read_text())
    assert document["end_tokens"] == [2, 258] and document["context"] == 256 and document["sparse"] is None
    decoder.write_text(json.dumps({**document, "end_tokens": [int(first)]}))
    assert generate(artifact.path, 9, 5, 6, 7).stdout.split() == [first]


@pytest.mark.parametrize(
    ("change", "numbers", "sentence"),
    [
        (None, (), "usage: edge_generate FOLDER COUNT TOKEN..."),
        (None, ("x", 5), "'x' is not a whole number"),
        (None, (9, -5), "'-5' is not a whole number"),
        (None, (300, 5), "longer than the context of 256"),
        (None, (1, 99999), "Token id 99999 at place 0 is outside the vocabulary of 300"),
        (lambda document: document.clear(), (1, 5), "has no decoder.json"),
        (lambda document: document.update(version=2), (1, 5), "is not a decoder of version 1"),
        (
            lambda document: document["rope"]["inverse_frequency"].pop(),
            (1, 5),
            "does not belong to this bundle",
        ),
        (lambda document: document.pop("sparse"), (1, 5), "'sparse' is missing"),
    ],
)
def test_bad_input_is_one_sentence(
    generate: Any, tmp_path: Path, change: Any, numbers: tuple[object, ...], sentence: str
):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    folder = export_model(source, ExportOptions("bundle"), tmp_path / "out").path
    if change is not None:
        document = json.loads((folder / "decoder.json").read_text())
        change(document)
        (folder / "decoder.json").write_text(json.dumps(document))
        if not document:
            (folder / "decoder.json").unlink()
    done = generate(folder, *numbers)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and sentence in done.stderr and done.stderr.count("\n") == 1
