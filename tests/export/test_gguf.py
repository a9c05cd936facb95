"""The GGUF target: every weight bit for bit, read back by edge's own reader; what is not exact is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.config import RopeConfig, SparseConfig
from edge.config.rope import rope_parameters
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import ArtifactError, ConfigError, ExportError
from edge.export.artifact import check_artifact, export_model
from edge.export.check import exact_executor, read_reference
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets.gguf.blocks import BLOCKS, obstacle, pack_blocks
from edge.export.targets.gguf.check import LlamaCppRun, check_gguf, run_llama_cpp
from edge.formats.bundle.reader import Bundle
from edge.formats.gguf_file import GGUFFile
from edge.hub.convert import convert
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from edge.text.tokenizer import load_tokenizer
from tests.steps import forward

from .tiny import LONGROPE, llama_config, make_source, minicpm_config

HALF = QuantScheme("f16")
GGUF = ExportOptions("gguf")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
# scheme of the source -> (asked for, type it must become)
EXACT = {
    QuantScheme("f16"): [(None, "F16"), ("f16", "F16")],
    QuantScheme("int4", 32): [(None, "Q4_0"), ("q4_0", "Q4_0"), ("q8_0", "Q8_0")],
    QuantScheme("int4", 128): [(None, "Q4_0")],
    QuantScheme("int4", 96): [(None, "Q4_0")],
    QuantScheme("int4", 0): [(None, "Q4_0"), ("q8_0", "Q8_0")],
    QuantScheme("int4", 32, minimum=True): [(None, "Q4_1"), ("q4_1", "Q4_1")],
    QuantScheme("int8", 32): [(None, "Q8_0")],
    QuantScheme("int8", 0): [(None, "Q8_0")],
    QuantScheme("ternary", 256): [
        *((None, "TQ2_0"), ("tq2_0", "TQ2_0"), ("tq1_0", "TQ1_0"), ("q4_0", "Q4_0"), ("q8_0", "Q8_0")),
    ],
    QuantScheme("ternary", 0): [(None, "TQ2_0"), ("tq1_0", "TQ1_0")],
    QuantScheme("ternary", 128): [(None, "Q4_0"), ("q8_0", "Q8_0")],
}
CASES = [(scheme, asked, stored) for scheme, kinds in EXACT.items() for asked, stored in kinds]


@pytest.mark.parametrize(("scheme", "asked", "stored"), CASES, ids=lambda value: str(value))
def test_every_weight_survives(tmp_path: Path, scheme: QuantScheme, asked: str | None, stored: str):
    source = make_source(tmp_path, minicpm_config(num_hidden_layers=1), scheme, head=HALF)
    artifact = export_model(source, ExportOptions("gguf", gguf_type=asked), tmp_path / "out")
    types = artifact.manifest.quantization.tensors
    assert types[Q_PROJ] == stored and types[EMBEDDING] == types[HEAD] == "F16"
    found = GGUFCheckpoint(artifact.model)
    for name in source.tensors:
        np.testing.assert_array_equal(found.read_float32(name), source.floats(name), err_msg=name)


@pytest.mark.parametrize("scheme", [QuantScheme("int4", 32), QuantScheme("ternary", 256)], ids=str)
def test_codes_and_scales_stay_what_they_are(tmp_path: Path, scheme: QuantScheme):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1), scheme)
    found = GGUFCheckpoint(export_model(source, GGUF, tmp_path / "out").model).read(Q_PROJ)
    wanted = source.tensor(Q_PROJ)
    assert isinstance(found, QuantizedMatrix) and isinstance(wanted, QuantizedMatrix)
    assert found.scheme == wanted.scheme
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.scales, wanted.scales)


def test_ternary_groups_of_128_fit_where_neighbours_share_their_scale(tmp_path: Path):
    scheme = QuantScheme("ternary", 128)

    def share(weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            if isinstance(weight, QuantizedMatrix):
                weight.scales[:, 1::2] = weight.scales[:, ::2]
                if name == Q_PROJ:
                    weight.scales[7, 0] *= 2

    source = make_source(tmp_path, minicpm_config(num_hidden_layers=1), scheme, head=HALF, change=share)
    artifact = export_model(source, GGUF, tmp_path / "out")
    types = artifact.manifest.quantization.tensors
    assert types.pop(Q_PROJ) == "Q4_0"  # exact as well, in twice the space
    assert {kind for name, kind in types.items() if "proj" in name} == {"TQ2_0"}
    file_type = GGUFFile(artifact.model).metadata["general.file_type"]
    assert file_type == gguf.LlamaFileType.MOSTLY_TQ2_0  # of most matrices, whatever the first one has
    with pytest.raises(
        ExportError, match=rf"'{Q_PROJ}' can't be stored as TQ2_0.*128 differ.*1 of 256 rows.*row 7"
    ):
        export_model(source, ExportOptions("gguf", gguf_type="tq2_0"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("kind", "scheme", "columns", "reason"),
    [
        ("F16", QuantScheme("int4", 32), 256, "int4-g32 weights would be rounded"),
        ("Q4_0", QuantScheme("f16"), 256, "f16 weights would be rounded"),
        ("Q4_0", QuantScheme("int8", 32), 256, "int8-g32 weights would be rounded"),
        ("Q4_0", QuantScheme("int4", 32, minimum=True), 256, "int4-g32-min weights would be rounded"),
        ("Q4_0", QuantScheme("int4", 32), 40, "rows of 40 weights are no multiple of its blocks of 32"),
        ("TQ2_0", QuantScheme("ternary", 0), 576, "rows of 576 weights are no multiple of its blocks of 256"),
        ("TQ2_0", QuantScheme("int4", 32), 256, "int4-g32 weights would be rounded"),
        ("TQ1_0", QuantScheme("ternary", 96), 768, "groups of 96 do not fit into its blocks of 256"),
    ],
)
def test_what_is_not_exact_is_refused(kind: str, scheme: QuantScheme, columns: int, reason: str):
    def scales() -> np.ndarray:
        return np.ones((4, scheme.groups(columns)), np.float16)

    assert obstacle(kind, scheme, columns, scales) == reason


@pytest.mark.parametrize("group", range(8))
def test_one_group_of_a_block_with_another_scale_is_an_obstacle(group: int):
    scales = np.ones((3, 8), np.float16)
    assert obstacle("TQ2_0", QuantScheme("ternary", 32), 256, lambda: scales) is None
    scales[1, group] = 2
    reason = obstacle("TQ2_0", QuantScheme("ternary", 32), 256, lambda: scales)
    assert reason is not None and "differ (in 1 of 3 rows, first in row 1)" in reason


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "TQ2_0", "TQ1_0"])
def test_blocks_are_those_of_the_gguf_package(kind: str):
    """Ternary values, which every type holds: the package's own quantizer must write the same bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = np.random.default_rng(1).integers(-1, 2, (8, 512)).astype(np.float32) * np.float32(0.5)
    blocks = pack_blocks(quantize(values, QuantScheme("ternary", 256)), kind)
    assert blocks.shape == (8, 512 // BLOCKS[kind].weights * BLOCKS[kind].bytes)
    np.testing.assert_array_equal(dequantize(blocks, GGMLQuantizationType[kind]), values)


@pytest.mark.parametrize("context", [64, 256])
def test_the_file_computes_what_the_source_computes(tmp_path: Path, context: int):
    """muP scales, LongRoPE (short and long list), q/k order and head: logits of both networks are equal."""
    source = make_source(tmp_path, minicpm_config())
    artifact = export_model(source, ExportOptions("gguf", context=context), tmp_path / "out")
    convert(GGUFCheckpoint(artifact.model), tmp_path / "back")
    tokens = np.arange(3, 51, dtype=np.int32)
    rows = []
    for bundle in (source.bundle, Bundle.open(tmp_path / "back")):
        executor = exact_executor(bundle, context)
        rows.append(forward(executor, executor.new_cache(), tokens, logits="all").logits)
        executor.close()
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=2e-5)
    assert np.abs(rows[0]).max() > 0.5


def test_metadata_comes_back(tmp_path: Path):
    source = make_source(tmp_path, minicpm_config())
    found = GGUFCheckpoint(export_model(source, GGUF, tmp_path / "out").model)
    ours, theirs = source.config.to_json(), found.config.to_json()
    scale = theirs["rope"].pop("attention_factor")  # llama.cpp wants the finished factor
    ours["rope"].pop("attention_factor")
    assert theirs == ours
    assert scale == pytest.approx(rope_parameters(LONGROPE, 64, 256, 256)[1], rel=1e-6)
    assert found.chat_template == source.chat_template
    assert found.generation_config == {"temperature": 0.5, "top_k": 20, "do_sample": True}


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(type="linear", factor=4.0),
        RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64),
        RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.5),
        RopeConfig(
            type="llama3", factor=8.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0
        ),
    ],
    ids=lambda rope: rope.type,
)
def test_rotary_embeddings_come_back(tmp_path: Path, rope: RopeConfig):
    source = make_source(tmp_path, llama_config(rope=rope, num_hidden_layers=1))
    found = GGUFCheckpoint(export_model(source, GGUF, tmp_path / "out").model).config
    wanted, scale = rope_parameters(rope, 64, 256, 256)
    frequencies, found_scale = rope_parameters(found.rope, 64, 256, 256)
    np.testing.assert_allclose(frequencies, wanted, rtol=1e-6)
    assert found_scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        (RopeConfig(type="dynamic", factor=2.0), "dynamic NTK"),
        (
            RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
            "truncate",
        ),
    ],
)
def test_rotary_embeddings_that_llama_cpp_lacks_are_refused(tmp_path: Path, rope: RopeConfig, reason: str):
    with pytest.raises(ExportError, match=reason):
        export_model(
            make_source(tmp_path, llama_config(rope=rope, num_hidden_layers=1)), GGUF, tmp_path / "out"
        )


def test_sparse_attention_is_refused(tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    source.bundle.manifest = replace(
        source.bundle.manifest, config=replace(source.config, sparse=SparseConfig(dense_len=64))
    )
    assert export_model(source, GGUF, tmp_path / "auto").manifest.attention == "dense"
    with pytest.raises(ConfigError, match=r"llama\.cpp has no block-sparse attention"):
        export_model(source, ExportOptions("gguf", attention="sparse"), tmp_path / "out")


def test_the_check_passes_and_says_by_what(tmp_path: Path):
    export_model(make_source(tmp_path, llama_config()), GGUF, tmp_path / "out")
    result = check_artifact(tmp_path / "out")
    assert result.passed and result.agreement == 1
    assert result.runtime == "llama-cpp-python" or "read by edge itself" in result.remarks[0]


def test_another_version_of_llama_cpp_than_the_file_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    artifact = export_model(make_source(tmp_path, llama_config(num_hidden_layers=1)), GGUF, tmp_path / "out")
    reference = read_reference(artifact)
    for version in ("0.3.6", "0.3.5"):
        run = LlamaCppRun(reference.logits, np.empty(0, np.int64), version)
        monkeypatch.setattr("edge.export.targets.gguf.check.run_llama_cpp", lambda *_, run=run, **__: run)
        monkeypatch.setattr("edge.export.targets.gguf.check.importlib.util.find_spec", lambda name: name)
        if version == "0.3.6":
            assert check_gguf(artifact, reference).version == version
            continue
        with pytest.raises(ArtifactError, match=r"needs llama-cpp-python >= 0\.3\.6, but version 0\.3\.5"):
            check_gguf(artifact, reference)


def test_smollm2_comes_back(smollm2_gguf: Path, tmp_path: Path):
    """The default model: tokens, template, and the very bytes of the tensors of the file it came from."""
    from edge.hub.resolve import open_model

    source = Source(open_model(smollm2_gguf))
    artifact = export_model(source, GGUF, tmp_path / "out")
    plan_bytes = sum(artifact.manifest.files[name].bytes for name in ("model.gguf",))
    assert plan_bytes == pytest.approx(smollm2_gguf.stat().st_size, rel=0.02)
    found, original = GGUFCheckpoint(artifact.model), GGUFCheckpoint(smollm2_gguf)
    assert replace(found.config, eos_token_ids=(2,)) == original.config
    assert found.config.eos_token_ids == (2, 0)  # <|endoftext|>, which the original does not name
    assert found.chat_template == original.chat_template
    for info in original.tensors:
        assert artifact.manifest.quantization.tensors[info.name] == info.source_type
        np.testing.assert_array_equal(found.read_float32(info.name), original.read_float32(info.name))
    text = "<|im_start|>user\nWhy is 12,345 größer? 你好\n\n  it's<|im_end|>"
    ids = [
        load_tokenizer(checkpoint.tokenizer_files, checkpoint.config).encode(text, parse_special=True)
        for checkpoint in (found, original)
    ]
    assert ids[0] == ids[1]


def test_the_program_for_llama_cpp_is_found(tmp_path: Path):
    """It starts in a process of its own: with the bindings the file is missing, without them they are."""
    with pytest.raises(ArtifactError, match=r"No module named 'llama_cpp'|Model path does not exist"):
        run_llama_cpp(tmp_path / "missing.gguf", [1])
