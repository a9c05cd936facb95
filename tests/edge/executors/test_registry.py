"""Opening executors: which one files get, what is refused, and executors and options that a plugin brings."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import edge
from edge.config import SparseConfig
from edge.config.tensors import expected_tensors
from edge.engine.settings import LOCAL_CHAT, SamplingParams
from edge.errors import ArtifactError, ConfigError, ContextError, EdgeError
from edge.executors.memory import memory_plan
from edge.executors.native import library as native
from edge.executors.native.executor import TIER_VARIABLE
from edge.executors.opening import (
    _context,
    activations_of,
    find_executor,
    kv_type_of,
    open_executor,
    refuse_ignored,
)
from edge.executors.options import RUN_OPTIONS, ExtraOption, RunOptions
from edge.executors.registry import EXECUTORS, Arithmetic, ExecutorSpec
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import ARTIFACT, REFERENCE, ArtifactManifest, Quantization, RuntimeRange
from edge.formats.bundle.manifest import FileEntry
from edge.formats.bundle.reader import Bundle
from edge.formats.hashing import file_sha256
from edge.hub.built_in import BUILT_IN
from edge.hub.convert import convert
from edge.hub.resolve import open_bundle, open_checkpoint, open_model, plan_model
from edge.system.options import Option

ONNX = importlib.util.find_spec("onnxruntime") is not None


@pytest.fixture
def bundle(tiny_config, array_checkpoint, tmp_path: Path) -> Bundle:
    convert(array_checkpoint(tiny_config), tmp_path / "bundle", quantize="int8")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def exported(tiny_config, tmp_path: Path) -> Callable[[str], Path]:
    """`exported(target)`: a folder that says it was exported to it, for 32 tokens, with a sham program."""

    def make(target: str) -> Path:
        folder = tmp_path / f"to-{target}"
        folder.mkdir()
        for name in ("model.bin", "tokenizer.json", REFERENCE):
            (folder / name).write_text(name)
        files = {
            path.name: FileEntry(path.stat().st_size, file_sha256(path)) for path in sorted(folder.iterdir())
        }
        manifest = ArtifactManifest(
            target=target,
            flavour="full",
            model="model.bin",
            runtime=RuntimeRange(target, "0.1"),
            operators={"MatMul": 1},
            source="tiny",
            source_sha256="0" * 64,
            config=replace(tiny_config, eos_token_ids=(2,)),
            quantization=Quantization(
                "int8", "rtn", False, dict.fromkeys(expected_tensors(tiny_config), "int8-g32")
            ),
            context=32,
            attention="sparse",
            kv_type="float16",
            tokenizer="tokenizer.json",
            chat_template=None,
            generation_config=None,
            files=files,
            created_by="a test",
        )
        (folder / ARTIFACT).write_text(json.dumps(manifest.to_json()))
        return folder

    return make


def test_files_choose_their_executor(bundle, exported):
    assert find_executor(bundle).name == "native"
    for target in ("onnx", "executorch"):
        files = open_model(exported(target))
        assert isinstance(files, Artifact) and files.target == target
        assert find_executor(files).name == find_executor(files, target).name == target
    assert find_executor(bundle, "native").target is None


def test_an_executor_that_does_not_fit_is_refused_by_name(bundle, exported):
    folder = exported("onnx")
    with pytest.raises(EdgeError, match="exported to onnx, so the executor 'native' can't run it"):
        open_executor(Artifact.open(folder), RunOptions("native"))
    with pytest.raises(EdgeError, match="exported to onnx, so the executor 'native' can't run it"):
        edge.load(folder, executor="native")
    with pytest.raises(ArtifactError, match="exported to onnx, but executorch is needed"):
        edge.load(folder, executor="executorch")
    with pytest.raises(EdgeError, match="'onnx' runs folders exported to onnx"):
        open_executor(bundle, RunOptions("onnx"))
    with pytest.raises(ArtifactError, match=r"not an exported model: it has no artifact\.json"):
        edge.load("smollm2-135m", executor="onnx")
    with pytest.raises(EdgeError, match="exported to coreml, which no executor here runs"):
        edge.load(exported("coreml"))
    with pytest.raises(EdgeError, match=r"export --to gguf`; name the file in it: .*model\.gguf"):
        edge.load(exported("gguf"))
    with pytest.raises(EdgeError, match="Unknown executor 'abacus'; choose one of native, onnx, executorch"):
        edge.load(bundle.path, executor="abacus")


@pytest.mark.parametrize(
    "change",
    [{"quantize": "int4"}, {"head": "f16"}, {"rope_override": {"rope_type": "linear"}}],
)
def test_an_exported_folder_can_not_be_changed(exported, change):
    with pytest.raises(EdgeError, match=f"exported as it is, so {next(iter(change))} can't be changed"):
        edge.load(exported("onnx"), **change)


def test_what_needs_weights_refuses_an_exported_folder(exported):
    folder = exported("onnx")
    for take in (open_bundle, open_checkpoint, plan_model):
        with pytest.raises(EdgeError, match="was exported to another runtime"):
            take(folder)


def test_the_tier_that_is_asked_for_counts_more_than_the_environments(bundle, monkeypatch):
    best, portable = native.cpu_tiers()[0], native.cpu_tiers()[-1]
    for variable, asked in ((best, portable), (portable, best), (portable, None)):
        monkeypatch.setenv(TIER_VARIABLE, variable)
        executor = open_executor(bundle, RunOptions(context=64, threads=1, tier=asked))
        assert executor.info.tier == (asked or variable)
        executor.close()


def test_shorter_batches_need_less_memory(bundle, monkeypatch):
    """What is free lies between the plans for 8 and for 256 tokens at a time."""
    small, large = (memory_plan(bundle, 64, max_batch=tokens).total for tokens in (8, 256))
    monkeypatch.setattr("edge.executors.opening.available_memory", lambda: (small + large) // 2)
    open_executor(bundle, RunOptions(context=64, threads=1, max_batch=8, mmap=False)).close()
    with pytest.raises(ContextError, match="choose a shorter context"):
        open_executor(bundle, RunOptions(context=64, threads=1, mmap=False))


def test_contexts(bundle, exported):
    with pytest.raises(ContextError, match="RoPE override"):
        open_executor(bundle, RunOptions(context=bundle.config.max_position_embeddings + 1))
    with pytest.raises(EdgeError, match="exported for a context of 32 tokens, not 33"):
        edge.load(exported("onnx"), context=33)
    executor = open_executor(bundle, RunOptions(threads=1))
    assert executor.context == bundle.config.max_position_embeddings
    executor.close()


def test_memory_is_asked_for_before_it_is_taken(bundle, exported, monkeypatch):
    monkeypatch.setattr("edge.executors.opening.available_memory", lambda: 1000)
    for files in (bundle, *([Artifact.open(exported("onnx"))] if ONNX else [])):
        with pytest.raises(ContextError, match="choose a shorter context"):
            open_executor(files)


def test_attention_is_decided_once(bundle, exported):
    """By the options over a bundle, as far as the executor can; over a folder as it was exported."""
    spec = EXECUTORS.get("native")
    sparse = SparseConfig(dense_len=16)
    config = replace(bundle.config, sparse=sparse)
    assert spec.sparse(bundle.with_config(config), "auto", 32) == sparse
    assert spec.sparse(bundle.with_config(config), "dense", 32) is None
    assert spec.sparse(bundle.with_config(config), "auto", 16) is None
    odd = bundle.with_config(replace(config, sparse=replace(sparse, block_size=32)))
    assert spec.sparse(odd, "auto", 32) is None
    with pytest.raises(ConfigError, match="block_size of 64"):
        open_executor(odd, RunOptions(attention="sparse", context=32))
    folder = Artifact.open(exported("onnx"))
    assert EXECUTORS.get("onnx").sparse(folder, "dense", 32) == SparseConfig()


def test_a_folder_keeps_the_constants_that_it_was_exported_with(tiny_config):
    sparse, spec = SparseConfig(dense_len=16), EXECUTORS.get("onnx")

    def found(attention, mode, context):
        files = SimpleNamespace(config=replace(tiny_config, sparse=sparse), attention=attention)
        return spec.sparse(files, mode, context)

    assert found("sparse", "auto", 8) == found("sparse", "dense", 32) == sparse
    assert found("dense", "sparse", 32) is None


class Stop(Exception):
    """Ends the opening of an executor once its memory is planned."""


def test_memory_is_planned_for_what_will_run(bundle, monkeypatch):
    """Each of what was asked for changes the plan by what it must."""
    plans = []

    def keep(plan, available):
        plans.append(plan)
        assert available == 12345
        raise Stop

    monkeypatch.setattr("edge.executors.opening.check_memory", keep)
    monkeypatch.setattr("edge.executors.opening.available_memory", lambda: 12345)

    def planned(files=bundle, **options):
        with pytest.raises(Stop):
            open_executor(files, RunOptions(**options))
        return plans[-1]

    plain = planned(context=64)
    assert plain == memory_plan(bundle, 64) and not plain.mapped_weights
    assert planned() == memory_plan(bundle, 512)
    halves, floats = (planned(context=64, kv_type=kv_type).kv_cache for kv_type in ("float16", "float32"))
    assert floats == 2 * halves < 2 * plain.kv_cache
    assert planned(context=64, max_batch=8) == memory_plan(bundle, 64, max_batch=8)
    assert (
        planned(context=64, mmap=True).mapped_weights and not planned(context=64, mmap=False).mapped_weights
    )
    own = bundle.with_config(replace(bundle.config, sparse=SparseConfig(dense_len=16)))
    summaries = planned(own, context=64).kv_cache - plain.kv_cache
    assert summaries == (4 + 1) * 2 * 2 * 16 * 2  # 64 tokens by 16 and by 64, layers, heads, size, float16
    assert planned(own, context=64, attention="dense") == plain
    assert planned(own, context=64, selection="paper").kv_cache == plain.kv_cache + summaries


def test_contexts_of_a_folder(exported):
    files = Artifact.open(exported("onnx"))
    assert [_context(files, asked) for asked in (None, 32, 31, 1)] == [32, 32, 31, 1]
    with pytest.raises(EdgeError, match="exported for a context of 32 tokens, not 33"):
        _context(files, 33)


def test_what_an_executor_fixes(bundle):
    pytest.importorskip("torch")
    executor = open_executor(bundle, RunOptions("torch", threads=1))
    info = executor.info
    assert (info.name, info.activations, info.kv_type) == ("torch", "float32", "float32")
    executor.close()
    with edge.load(bundle.path, executor="torch", kv_type="float32", attention="dense", context=32) as model:
        assert model.executor.info.kv_type == "float32"


def test_what_auto_activations_stand_for(bundle, exported):
    """What can't be helped counts more than what the model wants, and that more than int8; a choice of one's
    own stands for itself, and is refused where it can't be.
    """
    own, wanting = EXECUTORS.get("native"), bundle.with_activations("float32")
    assert (activations_of(own, bundle), activations_of(own, wanting)) == ("int8", "float32")
    assert activations_of(own, wanting, "int8") == "int8"
    folder = Artifact.open(exported("onnx"))
    assert folder.activations is None and activations_of(EXECUTORS.get("onnx"), folder) == "int8"
    torch = replace(own, arithmetic={"": Arithmetic("float32", "float32", "f32")})
    assert activations_of(torch, bundle) == "float32"
    for chosen in ("auto", "int8", "int16", "float32"):
        executor = open_executor(
            wanting.with_config(wanting.config), RunOptions(activations=chosen, threads=1)
        )
        assert executor.info.activations == ("float32" if chosen == "auto" else chosen)
        executor.close()


def test_the_built_in_model_runs_in_finer_arithmetic_by_name(smollm2_gguf):
    """Its file named by its path is one like any other."""
    for name, options, activations, kv_type in (
        (BUILT_IN.name, {}, "int16", "int16"),
        (BUILT_IN.name, {"activations": "float32"}, "float32", "float16"),
        (BUILT_IN.name, {"activations": "int8"}, "int8", "int16"),
        (smollm2_gguf, {}, "int8", "int16"),
    ):
        with edge.load(name, context=64, threads=1, **options) as model:
            assert (model.executor.info.activations, model.executor.info.kv_type) == (activations, kv_type)
            used = model.chat().chosen_settings().sampling
            wanted = LOCAL_CHAT if name == smollm2_gguf else {"temperature": 0.2, "top_p": 0.9}
            assert used == SamplingParams(**wanted)


IGNORED = [
    ("torch", {"kv_type": "float16"}, r"kv_type \(--kv\) can't be float16: the executor 'torch' computes"),
    ("torch", {"kv_type": "int8"}, "with float32; leave"),
    ("torch", {"activations": "int8"}, r"activations \(--activations\) can't be int8"),
    ("torch", {"activations": "int16"}, "can't be int16"),
    ("torch", {"mmap": True}, r"mmap \(--mmap/--no-mmap\) can't be True: the executor 'torch' has no use"),
    ("torch", {"mmap": False}, "can't be False"),
    ("torch", {"tier": "avx2"}, "tier can't be avx2"),
    ("onnx", {"kv_type": "int8"}, "kv_type .* computes '.*to-onnx' with float16"),
    ("onnx", {"kv_type": "float32"}, "with float16"),
    ("onnx", {"activations": "float32"}, "activations .* with int8"),
    ("onnx", {"activations": "int16"}, r"activations \(--activations\) can't be int16: .* with int8"),
    ("onnx", {"attention": "dense"}, r"attention \(--attention\) can't be dense: .* with sparse"),
    ("onnx", {"mmap": True}, "mmap"),
    ("executorch", {"mmap": False}, "mmap"),
    ("executorch", {"tier": "avx2"}, "tier"),
    ("executorch", {"kv_type": "int8"}, "kv_type"),
]


@pytest.mark.parametrize(("executor", "option", "sentence"), IGNORED)
def test_an_option_that_would_be_ignored_is_refused(bundle, exported, executor, option, sentence):
    """Also where it is the default of other executors, but was asked for."""
    if EXECUTORS.get(executor).package and not importlib.util.find_spec(EXECUTORS.get(executor).package):
        pytest.skip(f"{executor} is not installed")
    with pytest.raises(EdgeError, match=sentence):
        edge.load(bundle.path if executor == "torch" else exported(executor), **option, executor=executor)


def test_an_option_that_says_what_is_so_anyway_is_no_mistake(bundle, exported):
    folder = Artifact.open(exported("onnx"))
    spec = EXECUTORS.get("onnx")
    agreeing = RunOptions(kv_type="float16", activations="int8", attention="sparse")
    refuse_ignored(spec, folder, agreeing, ("kv_type", "activations", "attention", "mmap"))
    refuse_ignored(spec, folder, RunOptions(), ("attention",))
    refuse_ignored(EXECUTORS.get("native"), bundle, RunOptions(kv_type="int8", mmap=True, tier="x"))
    with pytest.raises(EdgeError, match="kv_type"):  # the same folder, and something else
        refuse_ignored(spec, folder, replace(agreeing, kv_type="int8"), ("kv_type",))


def test_what_a_gpu_computes_with(bundle):
    """float16, with a cache of float16 or int8; nothing else computes so."""
    cuda, native = EXECUTORS.get("cuda"), EXECUTORS.get("native")
    for kv_type, wanted in (("auto", "float16"), ("float16", "float16"), ("int8", "int8")):
        refuse_ignored(cuda, bundle, RunOptions(kv_type=kv_type), ("kv_type",))
        assert kv_type_of(cuda, bundle, "float16", kv_type) == wanted
    assert activations_of(cuda, bundle) == "float16"
    with pytest.raises(
        EdgeError, match=r"kv_type \(--kv\) can't be int4: .* leave the option out, or choose int8"
    ):
        refuse_ignored(cuda, bundle, RunOptions(kv_type="int4"))
    with pytest.raises(
        EdgeError, match=r"can't be float16: the executor 'native' computes with int8, int16 or"
    ):
        refuse_ignored(native, bundle, RunOptions(activations="float16"))


def test_info_says_how_it_was_opened(bundle):
    options = RunOptions(threads=1, activations="float32", kv_type="int8", tier="portable", mmap=True)
    executor = open_executor(bundle, options)
    info = executor.info
    assert (info.name, info.tier, info.threads) == ("native", "portable", 1)
    assert (info.activations, info.kv_type, info.sparse) == ("float32", "int8", None)
    assert info.mapped_weights and info.workspace_bytes > 0
    executor.close()


def test_an_executor_without_its_package():
    spec = ExecutorSpec("mine", "no_such_package.executor:open", package="no_such_package", install="pip it")
    with pytest.raises(EdgeError, match=r"'mine' can't be imported .*no_such_package.*`pip it`"):
        spec.load()


def test_unknown_options_are_named(bundle):
    with pytest.raises(EdgeError, match=r"The option 'group' is now 'quantize': .* as in int4-g64"):
        edge.load(bundle.path, group=64)
    with pytest.raises(EdgeError, match="There is no option 'contxt'; choose one of activations, attention,"):
        edge.load(bundle.path, contxt=5)
    with pytest.raises(EdgeError, match="Unknown run option 'contxt'"):
        RunOptions(extra={"contxt": 5})


def test_extra_options_are_checked_and_have_defaults(monkeypatch):
    monkeypatch.setattr(RUN_OPTIONS, "_found", {})
    RUN_OPTIONS.register("shout", ExtraOption(int, 1, Option("Times.", least=1, most=3)))
    assert RunOptions().extra_value("shout") == 1
    assert RunOptions(extra={"shout": 2}).extra_value("shout") == 2
    with pytest.raises(EdgeError, match="shout must be a whole number from 1 to 3, got 4"):
        RunOptions(extra={"shout": 4})


PLUGIN = '''
"""Declares an executor and an option of its own."""
from edge.executors.options import RUN_OPTIONS, ExtraOption
from edge.executors.registry import EXECUTORS, Arithmetic, ExecutorSpec
from edge.system.options import Option

EXECUTORS.register("loud", ExecutorSpec("loud", "loud_executor:open_loud"))
RUN_OPTIONS.register("shout", ExtraOption(int, 1, Option("How loud.", least=1)))
'''
EXECUTOR = '''
"""The native executor, with logits that are louder."""
from dataclasses import replace

from edge.executors.native.executor import NativeExecutor


class LoudExecutor(NativeExecutor):
    def __init__(self, files, options, **facts):
        super().__init__(files, options, **facts)
        self.factor = options.extra_value("shout")
        self._info = replace(self._info, name="loud")


open_loud = LoudExecutor
'''
PROGRAM = """
import sys, edge
from edge.errors import EdgeError
from edge.executors.options import extra_options
from edge.measure.doctor import diagnose
from edge.measure.profile import ProfileOptions, profile

for given in ({}, {"shout": 2}):
    with edge.load(sys.argv[1], executor="loud", threads=1, **given) as model:
        print(model.executor.info.name, model.executor.factor)
try:
    edge.load(sys.argv[1], executor="loud", shout=0)
except EdgeError as error:
    print(error)
print(sorted(extra_options()))
print(diagnose(("loud",), only=("executors",)).findings[0].detail)
options = ProfileOptions(executor=("loud",), threads=(1,), prefill=(), generate=2, repeat=1)
print(profile(sys.argv[1], options).results[0].executor)
"""


def test_a_plugin_brings_an_executor_and_its_option(bundle, tmp_path: Path):
    """An installed package, as `pip` would leave it, in a process that has never heard of it."""
    site = tmp_path / "site"
    info = site / "loud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[minicpm_edge.plugins]\nloud = loud_plugin\n")
    (site / "loud_plugin.py").write_text(PLUGIN)
    (site / "loud_executor.py").write_text(EXECUTOR)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle.path)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "loud 1",
        "loud 2",
        "shout must be a whole number of 1 or more, got 0.",
        "['shout']",
        "loud is there, and runs bundles",
        "loud",
    ]


def test_a_plugin_that_fails_is_named_and_native_still_runs(bundle, tmp_path: Path):
    site = tmp_path / "site"
    info = site / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[minicpm_edge.plugins]\nbad = bad_plugin\n")
    (site / "bad_plugin.py").write_text("raise RuntimeError('out of tune')\n")
    program = (
        "import sys, edge\n"
        "edge.load(sys.argv[1], threads=1).close()\n"
        "try: edge.load(sys.argv[1], executor='bad')\n"
        "except edge.EdgeError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert "plugin 'bad' (bad_plugin) can't be loaded (out of tune)" in run.stdout
