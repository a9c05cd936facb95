"""The full ONNX flavour: our operators in the installed ONNX Runtime give what the native executor gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.engine.session import Session
from edge.errors import ContextError, EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import check_artifact, plan_export
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.hub.resolve import open_model
from edge.quant.scheme import QuantScheme
from edge.runtime import load
from tests.steps import TREE, forward, paths, tree_masks

from .tiny import PARTIAL

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

SCHEMES = ["int4-g32", "int4-g32-min", "int4-row", "int8-g32", "ternary-g128", "f16"]
CONTEXT = 512
SPARSE = SparseConfig(dense_len=64, window_size=128, topk=3)


def opened(artifact: Artifact, threads: int = 2):
    return open_executor(artifact, RunOptions(threads=threads))


@pytest.fixture
def both(make_bundle, minicpm, export_bundle):
    """`both(scheme, context=512, family=oak, **config)`: executors of exported folder and bundle."""
    natives = []

    def make(
        scheme: str = "int4-g32",
        context: int = CONTEXT,
        threads: int = 2,
        family=lambda config: config,
        **fields,
    ):
        bundle = make_bundle(family(minicpm(**fields)), QuantScheme.parse(scheme), tokenizer=True)
        artifact = export_bundle(bundle, "onnx", context=context)
        natives.append(open_executor(bundle, RunOptions(context=context, kv_type="float16")))
        return opened(artifact, threads), natives[-1]

    yield make
    for native in natives:
        native.close()


def assert_equal(found, wanted) -> None:
    for name in ("logits", "hidden"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_equal_runs(executors, tokens, chunks) -> None:
    """Logits of every token, hidden states and outputs of layers, bit for bit."""
    caches = [executor.new_cache() for executor in executors]
    at = 0
    for turn in range(len(tokens)):
        piece = tokens[at : at + chunks[turn % len(chunks)]]
        if not len(piece):
            break
        found, wanted = (
            forward(executor, cache, piece, logits="all", hidden=True, layers=(1, 0))
            for executor, cache in zip(executors, caches, strict=True)
        )
        assert_equal(found, wanted)
        at += len(piece)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_bit_is_that_of_the_native_executor(scheme, tied, both, tokens_of):
    executors = both(scheme, tie_word_embeddings=tied)
    assert_equal_runs(executors, tokens_of(executors[0].config, 300), (7, 1, 130, 33))


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
def test_parts_beyond_a_llama(sparse, oak, both, tokens_of):
    """Biases, norms of q and k, partial RoPE, and a layer without it."""
    executors = both(family=oak, rope=PARTIAL, sparse=sparse, num_hidden_layers=3)
    assert_equal_runs(executors, tokens_of(executors[0].config, 300), (7, 1, 130, 33))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads, both, tokens_of):
    executors = both(threads=threads)
    assert_equal_runs(executors, tokens_of(executors[0].config, 200), (200, 1))


def test_sparse_attention(both, tokens_of):
    executors = both(sparse=SPARSE)
    assert executors[0].info.sparse == executors[1].info.sparse == SPARSE
    assert_equal_runs(executors, tokens_of(executors[0].config, 500), (150, 1, 1, 60))


def test_sparse_attention_over_16k_tokens(both, tokens_of):
    """Prefill, then greedy decoding: the same tokens."""
    context = 16384
    executors = both(sparse=SPARSE, context=context, max_position_embeddings=context)
    prompt = tokens_of(executors[0].config, context - 16)
    answers = []
    for executor in executors:
        session, answer = Session(executor), []
        logits = session.prefill(prompt)
        for _ in range(16):
            answer.append(int(logits.argmax()))
            logits = session.step(answer[-1])
        answers.append(answer)
    assert answers[0] == answers[1]
    with pytest.raises(ContextError):
        session.step(1)


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
def test_trees_and_what_is_kept_of_them(sparse, both, tokens_of):
    executors = both(sparse=sparse)
    config = executors[0].config
    before, tree, after = tokens_of(config, 200), tokens_of(config, len(TREE), 3), tokens_of(config, 80, 4)
    masks = tree_masks(TREE)
    positions = np.array([199 + len(path) for path in paths(TREE)], np.int32)
    results = []
    for executor in executors:
        cache = executor.new_cache()
        forward(executor, cache, before)
        results.append([forward(executor, cache, tree, positions=positions, tree=masks, logits="all")])
        executor.keep(cache, 200, [200 + node for node in paths(TREE)[5]])
        results[-1].append(forward(executor, cache, after, logits="all"))
        executor.truncate(cache, 150)
        results[-1].append(forward(executor, cache, after, logits="all"))
    for found, wanted in zip(*results, strict=True):
        assert_equal(found, wanted)


def test_choice_of_outputs(both, tokens_of):
    """Arrays that were returned once are not written again."""
    executor, _ = both()
    cache, tokens = executor.new_cache(), tokens_of(executor.config, 5)
    first = forward(executor, cache, tokens, hidden=True)
    kept = first.hidden.copy()
    executor.truncate(cache, 0)
    second = forward(executor, cache, tokens[::-1], logits="none")
    assert second.logits is None and second.hidden is None and cache.length == 5
    np.testing.assert_array_equal(first.hidden, kept)


def test_what_is_refused(both):
    executor, _ = both()
    cache = executor.new_cache()
    with pytest.raises(EdgeError, match="outside the vocabulary"):
        forward(executor, cache, [999])
    with pytest.raises(EdgeError, match="must see itself"):
        forward(executor, cache, [1, 2], tree=np.array([1, 1], np.uint64))
    assert cache.length == 0


def test_the_artifact(make_bundle, minicpm, export_bundle):
    bundle = make_bundle(minicpm(sparse=SPARSE), QuantScheme("int4", 32), tokenizer=True)
    options = ExportOptions("onnx", context=CONTEXT)
    plan = plan_export(Source(bundle), options)
    artifact = export_bundle(bundle, "onnx", context=CONTEXT)
    manifest = artifact.manifest
    assert (manifest.flavour, manifest.attention) == ("full", "sparse")
    assert plan.files == {name: (artifact.path / name).stat().st_size for name in plan.files}
    weights = sum(tensor.bytes for tensor in bundle.tensors.values())
    assert plan.files["weights.safetensors"] == pytest.approx(weights, rel=0.1)  # and its header
    assert {"edge::rms_norm_linear", "edge::paged_attention"} <= manifest.operators.keys()
    assert check_artifact(artifact.path).passed
    with load(artifact.path) as model:
        assert model.attention.startswith("sparse beyond 64 tokens")
        found = model.complete("abc", max_new_tokens=5, temperature=0)
    with load(bundle.path, context=CONTEXT, kv_type="float16") as model:
        assert model.complete("abc", max_new_tokens=5, temperature=0).tokens == found.tokens


def test_running_needs_neither_torch_nor_onnx(make_bundle, minicpm, export_bundle):
    bundle = make_bundle(minicpm(), QuantScheme("int4", 32), tokenizer=True)
    folder = str(export_bundle(bundle, "onnx", context=64).path)
    program = (
        "import sys, edge\n"
        f"with edge.load({folder!r}) as model:\n"
        "    model.complete('abc', max_new_tokens=3)\n"
        "print({'onnxruntime', 'onnx', 'torch', 'export', 'model'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "{'onnxruntime'}"


def test_the_default_model_says_the_same(smollm2_gguf, export_bundle):
    """Greedy answers of 48 tokens, token for token."""
    artifact = export_bundle(open_model(smollm2_gguf), "onnx", context=512)
    prompts = ("The three primary colours are", "Once upon a time", "def fibonacci(n):")
    with load(smollm2_gguf, context=512, kv_type="float16") as native, load(artifact.path) as ours:
        for prompt in prompts:
            texts = [m.complete(prompt, max_new_tokens=48, temperature=0).text for m in (ours, native)]
            assert texts[0] == texts[1] and len(texts[0]) > 20
        answers = [m.chat(temperature=0).send("Name a planet.").text for m in (ours, native)]
        assert answers[0] == answers[1] != ""
