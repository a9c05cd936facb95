"""examples/c, compiled by the C compiler of this machine and run on exported bundles."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.executors.native import library as native
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.runtime import load
from tests.export.tiny import llama_config, make_source, minicpm_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "c"
WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Werror"
SPARSE = SparseConfig(dense_len=64, window_size=64, init_blocks=0, topk=1)


LIBRARIES = [
    "installed",
    pytest.param("compiled with it", marks=pytest.mark.slow),  # as its README says; takes a minute
]


@pytest.fixture(scope="module", params=LIBRARIES)
def generate(
    request: pytest.FixtureRequest,
    require: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`generate(folder, count, *tokens)`: the finished program, with either libedge."""
    require("cc", "c++", "cmake", "ninja")
    build = tmp_path_factory.mktemp("c")
    own = [f"-DEDGE_LIBRARY={native.path().resolve()}", "-DCMAKE_BUILD_TYPE=Debug"]
    options = own if request.param == "installed" else []
    configure = ["cmake", "-G", "Ninja", "-S", str(EXAMPLE), "-B", str(build), *options]
    for command in ([*configure, f"-DCMAKE_C_FLAGS={WARNINGS}"], ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(build / "generate"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(minicpm_config(max_position_embeddings=400), id="longrope"),
        pytest.param(llama_config(sparse=SPARSE, max_position_embeddings=400), id="sparse"),
    ],
)
def test_the_tokens_of_the_python_program(generate, config, tmp_path: Path):
    """A prompt of more than one batch; the end token is printed too."""
    source = make_source(tmp_path, config)
    folder = export_model(source, ExportOptions("bundle"), tmp_path / "out").path
    prompt = np.random.default_rng(0).integers(3, 258, 300).tolist()
    with load(folder, kv_type="float16") as model:  # as the program has it
        done = model.complete(prompt, temperature=0, max_new_tokens=12)
    run = generate(folder, 12, *prompt)
    assert run.returncode == 0, run.stderr
    found = [int(line) for line in run.stdout.split()]
    assert found[: len(done.tokens)] == list(done.tokens) and len(done.tokens) > 0
    assert found[len(done.tokens) :] == [] or found[-1] in config.eos_token_ids
    pattern = r"300 tokens of the prompt: \d+ tokens/s\n(\d+) tokens after it: \d+ tokens/s\n"
    assert re.fullmatch(pattern, run.stderr)


def test_bad_input_is_one_sentence(generate, tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    folder = export_model(source, ExportOptions("bundle"), tmp_path / "out").path
    for arguments, sentence in (
        ((folder,), "usage: generate FOLDER COUNT TOKEN..."),
        ((folder, "x", 1), "COUNT and TOKEN are whole numbers of 0 or more."),
        ((folder, 1, -1), "COUNT and TOKEN are whole numbers of 0 or more."),
        ((folder, 1, 99999), "Token id 99999 at place 0 is outside the vocabulary of 300."),
        ((source.bundle.path, 1, 5), "has no decoder.json"),
        ((tmp_path / "nowhere", 1, 5), "is this the folder of a bundle?"),
        ((folder, 1, *[5] * 257), "context"),
    ):
        run = generate(*arguments)
        assert run.returncode == 1 and run.stdout == ""
        assert run.stderr.startswith("Error: ") and sentence in run.stderr and run.stderr.count("\n") == 1
