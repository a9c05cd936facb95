"""`edge.load` and Model: the Python API on the real default model, its threads and its refusals."""

from __future__ import annotations

import copy
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import edge
from edge.config.presets import PRESETS, preset
from edge.errors import ConfigError, ContextError, EdgeError, NativeError, TokenizerError
from edge.executors.memory import MemoryPlan, check_memory
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.runtime import Model, load
from edge.system.memory import _cgroup_available, _system_available, available_memory

GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def tiny_preset(tmp_path, monkeypatch) -> str:
    """The name of a tiny model with random weights, and a cache of the test's own."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    config = replace(
        preset("smollm2-135m"), **small, **heads, max_position_embeddings=128, eos_token_ids=(2, 510)
    )
    monkeypatch.setitem(PRESETS._found, "tiny", config)
    return "random:tiny"


def test_a_question_is_answered(smollm2):
    done = smollm2.chat().send("What is a mortgage?", temperature=0, max_new_tokens=40)
    assert "borrow" in done.text or "loan" in done.text


def test_the_default_context_is_the_trained_one(smollm2):
    assert smollm2.context == smollm2.config.max_position_embeddings == 8192


def test_exact_arithmetic_is_a_choice(smollm2_gguf):
    with edge.load(smollm2_gguf, context=128, activations="float32", kv_type="float32") as model:
        assert model.context == 128
        assert " Paris" in model.complete("The capital of France is", **GREEDY).text


def test_token_ids_are_a_prompt_too(smollm2):
    text = "The capital of France is"
    ids = smollm2.tokenizer.encode(text)
    assert smollm2.complete(ids, **GREEDY).tokens == smollm2.complete(text, **GREEDY).tokens


def test_control_tokens_count_only_on_request(smollm2):
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    parsed = smollm2.complete(text, parse_special=True, **GREEDY)
    assert parsed.prompt_tokens < smollm2.complete(text, **GREEDY).prompt_tokens


def test_threads_share_a_model(smollm2):
    prompts = [f"The number {n} is" for n in range(4)]
    alone = [smollm2.complete(p, **GREEDY).tokens for p in prompts]
    found: dict[int, tuple[int, ...]] = {}

    def work(n: int) -> None:
        found[n] = smollm2.complete(prompts[n], **GREEDY).tokens

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(prompts))] == alone


def test_chats_of_one_model_do_not_mix(smollm2):
    one, other = smollm2.chat(**GREEDY), smollm2.chat(**GREEDY)
    streams = [one.stream("Name a colour."), other.stream("Name an animal.")]
    for pair in zip(*streams, strict=False):
        assert len(pair) == 2
    texts = [s.result.text for s in streams]
    assert texts == [smollm2.chat(**GREEDY).send(q).text for q in ("Name a colour.", "Name an animal.")]


def test_the_models_generation_config_counts_below_a_flag(smollm2):
    bundle = copy.copy(smollm2.files)
    bundle.__dict__["generation_config"] = {"do_sample": False, "max_new_tokens": 3}
    model = Model(bundle, smollm2.executor)
    greedy = smollm2.complete("Once upon a time", **GREEDY)
    assert model.complete("Once upon a time").tokens == greedy.tokens[:3]
    assert len(model.complete("Once upon a time", max_new_tokens=5).tokens) == 5
    assert len(model.chat().send("Hi").tokens) == 3
    assert len(model.chat(max_new_tokens=2).send("Hi").tokens) == 2


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(smollm2, prompt):
    with pytest.raises(EdgeError, match="empty"):
        smollm2.stream(prompt)


def test_a_prompt_beyond_the_context_is_refused(smollm2):
    with pytest.raises(ContextError, match="8193 tokens and the context holds 8192"):
        smollm2.stream([1] * 8193)


def test_a_token_outside_the_vocabulary_is_refused(smollm2):
    for token in (-1, smollm2.config.vocab_size):
        with pytest.raises(TokenizerError, match="vocabulary"):
            smollm2.complete([5, token])


def test_an_unknown_setting_is_named(smollm2):
    with pytest.raises(EdgeError, match="'max_tokens'"):
        smollm2.complete("Hi", max_tokens=3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"executor": "abacus"}, "abacus"),
        ({"context": 0}, "context"),
        ({"threads": -1}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"activations": "int3"}, "int3"),
        ({"kv_type": "int3"}, "int3"),
        ({"tier": "abacus"}, "abacus"),
        ({"rope_override": "no such file"}, "no such file"),
        ({"rope_override": "{broken"}, "JSON"),
        ({"rope_override": {"rope_type": "spiral"}}, "spiral"),
    ],
)
def test_wrong_options_are_named(smollm2_gguf, options, word):
    with pytest.raises(EdgeError, match=word):
        load(smollm2_gguf, **options)


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(EdgeError, match=r"nothing\.gguf"):
        load(tmp_path / "nothing.gguf")


def test_a_longer_context_needs_a_rope_override(smollm2_gguf, tmp_path):
    with pytest.raises(ContextError, match="RoPE override"):
        load(smollm2_gguf, context=8193)
    override = {"rope_type": "linear", "factor": 2}
    file = tmp_path / "override.json"
    file.write_text(json.dumps(override))
    for form in (override, json.dumps(override), file, str(file)):
        with load(smollm2_gguf, context=16384, rope_override=form) as model:
            assert model.context == 16384
            assert model.config.rope.type == "linear"
            assert model.complete("The capital of France is", **GREEDY).text
    with pytest.raises(ContextError, match="16384"):
        load(smollm2_gguf, context=16385, rope_override=override)


def test_verify_finds_a_changed_byte_that_size_and_time_hide(tiny_preset, tmp_path):
    """A bundle of one's own is refused; one of the cache is converted again."""
    with load(tiny_preset, quantize="int8") as model:
        cached = model.files.path
    own = tmp_path / "own"
    shutil.copytree(cached, own)
    load(own).close()
    sound = (cached / "weights.safetensors").read_bytes()
    for folder in (cached, own):
        file = folder / "weights.safetensors"
        before = file.stat()
        with file.open("r+b") as stream:
            stream.seek(-1000, 2)
            stream.write(bytes([sound[-1000] ^ 0xFF]))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        load(folder).close()  # without it, size and time are believed
    with pytest.raises(EdgeError, match="was altered or damaged"):
        load(own, verify=True)
    with load(tiny_preset, quantize="int8", verify=True) as model:
        assert model.files.path == cached and (cached / "weights.safetensors").read_bytes() == sound


def test_a_model_outlives_its_cache_entry(tiny_preset, tmp_path):
    with load(tiny_preset) as model:
        shutil.rmtree(tmp_path / "cache")
        assert model.chat(**GREEDY).send("Hi").prompt_tokens > 0
        assert model.memory_plan.total > 0 and model.session().save(tmp_path / "kv") > 0


def test_what_cannot_fit_in_memory_is_refused_with_the_numbers(smollm2_gguf):
    with pytest.raises(ContextError, match=r"GB = weights 96\.\d MB \+ KV cache \d{4,} GB"):
        load(smollm2_gguf, rope_override={"max_position_embeddings": 10**9})


def test_the_memory_plan(smollm2):
    plan = replace(smollm2.memory_plan, mapped_weights=False)
    assert plan.kv_cache == 8192 * smollm2.config.kv_bytes_per_token(smollm2.executor.info.kv_type)
    file = smollm2.files.file("weights.safetensors").stat().st_size
    assert abs(plan.weights - file) < 0.01 * file
    assert plan.draft > 2_000_000  # the built-in one
    assert plan.total == plan.weights + plan.kv_cache + plan.workspace + plan.draft
    # The estimate of the workspace is of the right order.
    assert 0.3 < plan.workspace / smollm2.executor.info.workspace_bytes < 3
    check_memory(plan, None)
    check_memory(plan, plan.total)
    with pytest.raises(ContextError, match="choose a shorter context"):
        check_memory(plan, plan.total - 1)
    mapped = replace(plan, mapped_weights=True)
    check_memory(mapped, plan.total - plan.weights)
    with pytest.raises(ContextError, match=r"\(mapped\)"):
        check_memory(mapped, plan.total - plan.weights - 1)
    sizes = "4.70 GB = weights 4.61 GB (mapped) + KV cache 67.1 MB (at 2048 tokens) + workspace 19.5 MB"
    assert str(MemoryPlan(4_610_000_000, 67_108_864, 19_500_000, 2048, mapped_weights=True)) == sizes


def test_mapped_weights_answer_the_same(smollm2, smollm2_gguf):
    with load(smollm2_gguf, context=256, mmap=True) as model:
        assert model.memory_plan.mapped_weights
        assert smollm2.memory_plan.mapped_weights == smollm2.executor.weights.mapped
        found = model.complete("The capital of France is", **GREEDY)
    assert found.tokens == smollm2.complete("The capital of France is", **GREEDY).tokens


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with /proc/meminfo")
def test_available_memory_is_what_the_system_says():
    """Others take and give memory between the readings; half and double tell bytes from kB, free from all."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    said = {name.rstrip(":"): 1024 * int(value) for name, value, *_ in lines}
    assert said["MemAvailable"] / 2 < _system_available() < min(2 * said["MemAvailable"], said["MemTotal"])
    least = min([_system_available(), *_cgroup_available()])
    assert least / 2 < available_memory() < 2 * least


def cgroup(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_cgroup_limits_are_read_up_to_the_root(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/outer/inner\n")
    cgroup(root, "outer/inner", memory_max="max\n", memory_current="50\n", memory_stat="active_file 0\n")
    cgroup(
        root,
        "outer",
        memory_max="1000\n",
        memory_current="600\n",
        memory_stat="anon 300\ninactive_file 200\nactive_file 100\n",
    )
    assert _cgroup_available(root, own) == [1000 - (600 - 300)]
    own.write_text("3:memory:/box\n1:cpu:/box\n")
    box = root / "memory" / "box"
    box.mkdir(parents=True)
    (box / "memory.limit_in_bytes").write_text("500")
    (box / "memory.usage_in_bytes").write_text("700")
    (box / "memory.stat").write_text("inactive_file 100\n")
    assert _cgroup_available(root, own) == [0]
    own.write_text("4:cpu,memory:/box\n")  # controllers may share a hierarchy
    (box / "memory.usage_in_bytes").write_text("70")  # less than its files, which are counted elsewhere
    assert _cgroup_available(root, own) == [500]
    assert _cgroup_available(root, tmp_path / "missing") == []


def test_a_closed_model_says_so(smollm2_gguf):
    model = load(smollm2_gguf, context=64)
    session = model.session()
    session.prefill([1, 2, 3])
    model.close()
    model.close()
    with pytest.raises(NativeError, match="closed"):
        session.step(4)
    with pytest.raises(NativeError, match="closed"):
        model.complete("Hi")


def test_a_model_without_chat_template_says_so(tmp_path, tiny_config, array_checkpoint):
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.chat_template = None
    convert(checkpoint, tmp_path / "plain", quantize="f16")
    bundle = Bundle.open(tmp_path / "plain")
    with (
        Model(bundle, open_executor(bundle, RunOptions(threads=1)), name="plain") as model,
        pytest.raises(EdgeError, match="'plain' has no chat template"),
    ):
        _ = model.chat_template


def test_a_rope_override_does_not_change_the_weights_bundle(smollm2_gguf, smollm2):
    before = smollm2.files.config
    with load(smollm2_gguf, rope_override={"max_position_embeddings": 9000}) as model:
        assert model.context == 9000
    assert smollm2.files.config == before
    with pytest.raises(ConfigError):
        load(smollm2_gguf, rope_override={"max_position_embedings": 9000})
