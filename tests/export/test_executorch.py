"""The ExecuTorch target in the real runtime: the full flavour equals the native decoder bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import ContextError, EdgeError
from edge.executors import adapters
from edge.executors.native.library import path as native_path
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import check_artifact, export_model, plan_export
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme
from edge.runtime import load
from tests.export.tiny import PARTIAL, llama_config, make_source, minicpm_config
from tests.steps import forward

pytest.importorskip("executorch", reason="the package executorch is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent
CONTEXT = 128
LONG = 16384
SPARSE = SparseConfig(dense_len=256, window_size=512, topk=4)
SIZE_TOLERANCE = 0.02
PORTABLE_DIVERGENCE = 0.02  # nats: activations are int8 per token there, and scales bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("executorch")


def only_ascii(weights) -> None:
    """Let the network answer with visible ASCII: the head has rows of zeros for all other tokens."""
    name = HEAD if HEAD in weights else EMBEDDING
    matrix = weights[name].dequantize()
    matrix[:3], matrix[97:] = 0, 0
    weights[name] = quantize(matrix, weights[name].scheme)


def exported(source: Source, out: Path, **options) -> Artifact:
    return export_model(source, ExportOptions("executorch", **options), out)


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    """int4 with minimums, the head int8; muP scales, LongRoPE, an untied head."""
    schemes = QuantScheme("int4", 32, True), QuantScheme("int8", 32)
    return make_source(folder, minicpm_config(), schemes[0], head=schemes[1], change=only_ascii)


@pytest.fixture(scope="module")
def full(source: Source, folder: Path) -> Artifact:
    return exported(source, folder / "full", context=CONTEXT)


@pytest.fixture(scope="module")
def portable(folder: Path) -> tuple[Source, Artifact]:
    """One layer of symmetric int4, half of whose groups have a negative scale."""
    config = llama_config(num_hidden_layers=1, eos_token_ids=(258,))  # the tokenizer has </s>, id 2, as well
    source = make_source(folder, config, change=only_ascii)
    return source, exported(source, folder / "portable", context=CONTEXT, portable=True)


@pytest.fixture(scope="module")
def grown(folder: Path, oak) -> tuple[Source, Artifact]:
    """Biases, norms of q and k, partial RoPE, and a layer without it."""
    source = make_source(folder, oak(minicpm_config(rope=PARTIAL)))
    return source, exported(source, folder / "grown", context=CONTEXT)


@pytest.fixture
def both(full: Artifact, source: Source):
    executors = (
        open_executor(full, RunOptions(threads=2)),
        open_executor(source.bundle, RunOptions(context=CONTEXT, threads=2, kv_type="float16")),
    )
    yield executors
    for executor in executors:
        executor.close()


def tokens_of(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 250, n).astype(np.int32)


def assert_equal(executors, caches, tokens, **wanted) -> None:
    found, truth = (forward(e, c, tokens, **wanted) for e, c in zip(executors, caches, strict=True))
    for name in ("logits", "hidden"):
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


def test_parts_beyond_a_llama(grown):
    source, artifact = grown
    executors = (
        open_executor(artifact, RunOptions(threads=2)),
        open_executor(source.bundle, RunOptions(context=CONTEXT, threads=2, kv_type="float16")),
    )
    caches = [executor.new_cache() for executor in executors]
    for count, wanted in ((40, "last"), (1, "last"), (17, "all"), (1, "last")):
        assert_equal(executors, caches, tokens_of(count, count), logits=wanted, hidden=True)
    tree = np.array([0b1, 0b11, 0b101], np.uint64)
    places = np.array([59, 60, 60], np.int32)
    assert_equal(executors, caches, [5, 6, 7], positions=places, tree=tree, logits="all")
    for executor in executors:
        executor.close()


def test_full_equals_native(both):
    caches = [executor.new_cache() for executor in both]
    for count, wanted in ((40, "last"), (1, "last"), (17, "all"), (2, "none"), (30, "last")):
        assert_equal(both, caches, tokens_of(count, count), logits=wanted, hidden=count == 30)
    for executor, cache in zip(both, caches, strict=True):
        executor.truncate(cache, 5)
    assert_equal(both, caches, tokens_of(90), logits="all", hidden=True)  # over 64: in pieces


def test_trees_and_kept_rows(both):
    caches = [executor.new_cache() for executor in both]
    assert_equal(both, caches, tokens_of(20))
    tree = {
        "positions": np.array([20, 21, 21, 22], np.int32),
        "tree": np.array([0b1, 0b11, 0b101, 0b1101], np.uint64),
        "logits": "all",
        "hidden": True,
    }
    assert_equal(both, caches, tokens_of(4), **tree)
    for executor, cache in zip(both, caches, strict=True):
        executor.keep(cache, 20, [20, 22, 23])
        assert cache.length == 23
    assert_equal(both, caches, tokens_of(3), logits="all")


def test_caches_are_independent(both):
    executor, native = both
    first, second = executor.new_cache(), executor.new_cache()
    forward(executor, first, tokens_of(9, 2))
    forward(executor, second, tokens_of(30, 3))
    caches = first, native.new_cache()
    forward(native, caches[1], tokens_of(9, 2))
    assert_equal(both, caches, tokens_of(1))


def test_refusals(both, portable):
    executor, native = both
    cache = executor.new_cache()
    with pytest.raises(ContextError, match="do not fit"):
        forward(executor, cache, tokens_of(CONTEXT))
        forward(executor, cache, [5])
    with pytest.raises(EdgeError, match="another executor"):
        forward(executor, native.new_cache(), [5])
    with pytest.raises(EdgeError, match="outputs of layers"):
        forward(executor, executor.new_cache(), [5], layers=[0])
    plain = open_executor(portable[1])
    with pytest.raises(EdgeError, match="portable flavour"):
        forward(plain, plain.new_cache(), [5], hidden=True)
    plain.close()
    with pytest.raises(EdgeError, match="closed"):
        plain.new_cache()
    with pytest.raises(EdgeError, match="context of 128"):
        open_executor(portable[1], RunOptions(context=CONTEXT + 1))


@pytest.mark.slow
def test_sparse_attention_at_16k_tokens(folder: Path):
    config = llama_config(
        **{"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 128, "sparse": SPARSE},
        max_position_embeddings=LONG,
    )
    source = make_source(folder, config, QuantScheme("ternary", 128))
    artifact = exported(source, folder / "sparse")
    assert (artifact.manifest.attention, artifact.manifest.context) == ("sparse", LONG)
    executors = (
        open_executor(artifact, RunOptions(threads=2)),
        open_executor(source.bundle, RunOptions(threads=2, attention="sparse", kv_type="float16")),
    )
    caches = [executor.new_cache() for executor in executors]
    tokens = tokens_of(LONG - 8)
    for at in range(0, len(tokens), 256):
        assert_equal(executors, caches, tokens[at : at + 256])
    tree = np.array([0b1, 0b11, 0b101], np.uint64)
    places = np.array([len(tokens), len(tokens) + 1, len(tokens) + 1], np.int32)
    assert_equal(executors, caches, [5, 6, 7], positions=places, tree=tree, logits="all")
    for executor, cache in zip(executors, caches, strict=True):
        executor.keep(cache, len(tokens), [len(tokens), len(tokens) + 2])
    assert_equal(executors, caches, [9])


def test_the_runner_learns_every_end_token(portable):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(portable[1].model)
    assert program.load_method("get_eos_ids").execute([]) == [258, 2]


def test_full_passes_its_check(full: Artifact):
    result = check_artifact(full.path)
    assert result.passed and result.agreement == 1


def test_sizes_are_as_planned(full: Artifact, source: Source, portable, grown):
    for model, artifact in ((source, full), portable, grown):
        options = ExportOptions(
            "executorch", context=CONTEXT, portable=artifact.manifest.flavour == "portable"
        )
        planned = plan_export(model, options).files["model.pte"]
        # The graph weighs as much as these tiny tensors do; a real model's size is dominated by its weights.
        assert abs(artifact.model.stat().st_size - planned) < 0.05 * planned


def test_chat_runs_on_it(full: Artifact, source: Source):
    settings = {"temperature": 0, "max_new_tokens": 12}
    with load(full.path) as model, load(source.bundle.path, context=CONTEXT, kv_type="float16") as native:
        texts = []
        for loaded in (model, native):
            chat = loaded.chat(**settings)
            texts.append([chat.send(line).text for line in ("Hello", "And then?")])
        assert texts[0] == texts[1]
        assert model.executor.max_batch == CONTEXT


def test_torch_is_not_loaded(full: Artifact):
    program = (
        "import sys\nfrom edge.runtime import load\n"
        "with load(sys.argv[1]) as model:\n"
        "    model.complete([5, 6, 7], max_new_tokens=2)\n"
        "assert not {'torch', 'executorch'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", program, str(full.path)], check=True)


STOCK = """
import ctypes, json, sys, warnings
warnings.filterwarnings("ignore")
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
ctypes.CDLL(sys.argv[1])
answers = []
for folder in sys.argv[2:]:
    runner = TextLLMRunner(f"{folder}/model.pte", f"{folder}/tokenizer.json")
    pieces, stats = [], []
    config = GenerationConfig(echo=False, max_new_tokens=8, temperature=0.0)
    runner.generate("the other three", config, token_callback=pieces.append, stats_callback=stats.append)
    answers.append(["".join(pieces), stats[0].num_prompt_tokens, stats[0].num_generated_tokens])
print("ANSWERS" + json.dumps(answers))
"""


def test_the_stock_phone_runner_gives_the_same_text(full: Artifact, portable):
    folders = [str(full.path), str(portable[1].path)]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(adapters.executorch_library()), *folders],
        check=True,
        capture_output=True,
        text=True,
    )
    line = next(line for line in done.stdout.splitlines() if "ANSWERS" in line)
    answers = json.loads(line.partition("ANSWERS")[2])
    for path, (text, prompt, _) in zip(folders, answers, strict=True):
        with load(path) as model:
            ids = model.tokenizer.encode("the other three", add_bos=False)
            assert prompt == len(ids)
            wanted = model.complete(ids, temperature=0, max_new_tokens=8).text
        assert len(text) >= 7 and text == wanted[: len(text)]


def test_the_program_without_python(full: Artifact, source: Source, tmp_path: Path):
    """The CMake project builds, and its program gives the native tokens."""
    build = tmp_path / "build"
    commands = [
        [
            *("cmake", "-G", "Ninja", "-S", str(ROOT / "kernels/adapters/executorch"), "-B", str(build)),
            f"-Dexecutorch_DIR={adapters.executorch_wheel() / 'share/cmake'}",
            f"-DEDGE_LIBRARY={native_path().resolve()}",
        ],
        ["cmake", "--build", str(build)],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    prompt = [int(token) for token in tokens_of(12)]
    done = subprocess.run(
        [str(build / "edge_executorch"), str(full.model), "6", *map(str, prompt)],
        check=True,
        capture_output=True,
        text=True,
        env={"EDGE_EXECUTORCH_LIBRARIES": str(build / "libedge_executorch_operators.so")},
    )
    native = open_executor(source.bundle, RunOptions(context=CONTEXT, threads=2, kv_type="float16"))
    cache, given, wanted = native.new_cache(), prompt, []
    for _ in range(6):
        given = [int(forward(native, cache, given).logits[-1].argmax())]
        wanted += given
    native.close()
    assert [int(token) for token in done.stdout.split()] == wanted
