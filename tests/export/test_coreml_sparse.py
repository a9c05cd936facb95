"""Sparse attention in Core ML programs: the functions of a saved package, run in NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.errors import ConfigError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export import check
from edge.export.artifact import check_artifact, export_model, plan_export
from edge.export.check import exact_executor, read_reference
from edge.export.options import ExportOptions
from edge.export.targets.coreml.sparse import SparseAttention, SparseLayout
from edge.quant.scheme import QuantScheme
from edge.system.units import format_bytes
from tests.steps import forward

from .tiny import LONGROPE, llama_config, make_source, minicpm_config

pytest.importorskip("coremltools")
COREML = ExportOptions("coreml")
CONTEXT = 700
SPARSE = SparseConfig(dense_len=200, window_size=128, topk=3)
PIECES = (100, 101, 1, 250)  # of a prefill; then single tokens
NO_ROTATION = RopeConfig(type="linear", factor=1e9)
"""cos and sin are 1 and 0: with float16 weights nothing is rounded, and no query chooses another block."""


def network(sparse: SparseConfig, **changes: Any) -> ModelConfig:
    fields = {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT, "sparse": sparse}
    return minicpm_config(**{**fields, **changes})


def sharper(factor: float) -> Any:
    """Larger queries: attention is far from a mean, so that a wrong block shows."""

    def change(weights: dict[str, Any]) -> None:
        for name in weights:
            if "q_proj" in name:
                weights[name] = factor * weights[name]

    return change


def saved(artifact: Any) -> Any:
    from edge.export.targets.coreml.mil_numpy import MilProgram

    return MilProgram(artifact.model)


def tokens_of(count: int) -> Any:
    return np.random.default_rng(5).integers(3, 259, count).astype(np.int32)


def all_logits(executor: Any, tokens: Any) -> Any:
    cache, rows = executor.new_cache(), []
    for start in range(0, len(tokens), 250):
        rows.append(forward(executor, cache, tokens[start : start + 250], logits="all").logits)
    executor.close()
    return np.concatenate(rows)


ALWAYS = SparseConfig(kernel_size=64, kernel_stride=32, dense_len=-1, window_size=64, topk=2)
# NumPy takes ten seconds for each, so some are left to `make test-all`.
CASES = [
    pytest.param({"sparse": SPARSE, "rope": LONGROPE, "num_hidden_layers": 2}, 1, 5e-3, id="rotated"),
    # More blocks are gathered than a sparse query reads.
    pytest.param(
        {"sparse": replace(SPARSE, dense_len=400), "num_attention_heads": 8},
        4,
        1e-4,
        id="groups-of-4",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"sparse": replace(SPARSE, exact_lse=True), "num_key_value_heads": 1}, 4, 1e-4, id="exact-lse"
    ),
    # Four blocks before the first coarse window, of which three are read.
    pytest.param(
        {"sparse": ALWAYS, "num_key_value_heads": 4}, 4, 1e-4, id="always-sparse", marks=pytest.mark.slow
    ),
    pytest.param(
        {"sparse": replace(SPARSE, init_blocks=2, kernel_size=16)},
        4,
        1e-4,
        id="kernels-of-16",
        marks=pytest.mark.slow,
    ),
    pytest.param({"sparse": SPARSE}, 0, 1e-4, id="equal-scores"),  # the lower blocks
    pytest.param({"sparse": replace(SPARSE, dense_len=100)}, 400, 1e-3, id="clamped", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("changes", "factor", "tolerance"), CASES)
def test_logits_are_those_of_the_references(
    tmp_path: Path, changes: dict[str, Any], factor: float, tolerance: float
):
    """Prefill in pieces and single tokens across dense_len, every block border, and after going back."""
    config = network(**{"rope": NO_ROTATION, **changes})
    source = make_source(tmp_path, config, QuantScheme("f16"), change=sharper(factor))
    tokens = tokens_of(CONTEXT)
    truth = all_logits(exact_executor(source.bundle, CONTEXT, "sparse"), tokens)
    dense = all_logits(exact_executor(source.bundle, CONTEXT), tokens)
    assert np.median(np.abs(truth - dense)[450:].max(axis=1)) > 10 * tolerance
    torch = all_logits(
        open_executor(source.bundle, RunOptions("torch", CONTEXT, threads=1, attention="sparse")), tokens
    )
    np.testing.assert_allclose(truth, torch, rtol=0, atol=tolerance)
    program = saved(export_model(source, COREML, tmp_path / "out"))

    def run(start: int, stop: int, function: str) -> None:
        found = program.predict(tokens[start:stop], start, function)
        np.testing.assert_allclose(found, truth[stop - 1], rtol=0, atol=tolerance, err_msg=f"{start}:{stop}")

    at = 0
    for count in PIECES:
        run(at, at + count, "main")
        at += count
    for start, stop in ((at, CONTEXT), (150, 280)):
        for position in range(start, stop):
            run(position, position + 1, "decode")
    run(280, 536, "main")
    run(536, 537, "decode")
    program.predict(tokens[::-1][:200], 300)  # other tokens, then back: their windows must not stay
    run(300, 340, "main")
    for position in range(340, 410):
        run(position, position + 1, "decode")
    for position in range(398, 403):
        run(position, position + 1, "main")


def test_a_decode_step_reads_the_chosen_blocks_only(tmp_path: Path):
    """By the shapes of the saved operators: what reads a cache, and how much of it."""
    context = 4096
    config = network(SPARSE, max_position_embeddings=context)
    source = make_source(tmp_path, config)
    layout = SparseLayout(SPARSE, context)
    plan = plan_export(source, COREML)
    program = saved(export_model(source, COREML, tmp_path / "out"))
    rows, readers, moved = 0, set(), {"slice_update", "coreml_update_state", "read_state", "reshape"}
    row = config.num_key_value_heads * config.head_dim
    whole = layout.rows * row
    for operation in program.functions["decode"].operations:
        assert all(isinstance(n, (int, np.integer)) for out in operation.outputs for n in out.shape), (
            operation
        )
        states = {
            variable.name
            for given in operation.inputs.values()
            for variable in (given if isinstance(given, (list, tuple)) else [given])
            if variable.op is not None
            and variable.op.op_type != "const"
            and int(np.prod(variable.shape)) == whole
            and len(variable.shape) > 1
        }
        if states and operation.op_type not in moved:
            readers.add(operation.op_type)
            rows += int(np.prod(operation.outputs[0].shape)) // row
    assert readers == {"gather", "slice_by_size"}
    assert rows + layout.fine + layout.coarse == layout.decode_rows
    assert layout.gathered == layout.selected == 5 and layout.blocks == 64
    read, cache = layout.decode_rows * row * 2, 2 * whole * 2
    assert f"reads {format_bytes(read)} of states, of a KV cache of {format_bytes(cache)}." in plan.notes[1]
    assert read < cache / 5


def test_blocks_of_a_decode_step_cover_the_dense_queries():
    published = SparseLayout(SparseConfig(), 32768)
    assert (published.selected, published.gathered, published.blocks) == (96, 128, 512)
    assert (published.fine, published.coarse) == (2047, 511)
    assert SparseLayout(SparseConfig(), 8200).gathered == 128
    assert SparseLayout(SparseConfig(dense_len=-1), 32768).gathered == 96
    assert SparseLayout(replace(SPARSE, dense_len=400), 500).gathered == 7


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (network(SPARSE, num_hidden_layers=2), QuantScheme("int4", 32)),
        (network(replace(SPARSE, exact_lse=True), tie_word_embeddings=True), QuantScheme("ternary", 128)),
        (network(replace(SPARSE, dense_len=-1)), QuantScheme("f16")),
    ],
    ids=["int4", "ternary-exact-lse", "float16-always-sparse"],
)
def test_the_package(tmp_path: Path, config: ModelConfig, scheme: QuantScheme):
    """Two functions, each weight once, sizes by the formula, and a check that chooses among blocks."""
    import coremltools as ct

    source = make_source(tmp_path, config, scheme)
    plan = plan_export(source, COREML)
    artifact = export_model(source, COREML, tmp_path / "out")
    assert plan.attention == artifact.manifest.attention == "sparse"
    for name, size in plan.files.items():
        assert artifact.manifest.files[name].bytes == pytest.approx(size, rel=0.02), name
    description = ct.models.MLModel(str(artifact.model), skip_model_load=True).get_spec().description
    assert description.defaultFunctionName == "main"
    main, decode = description.functions
    assert (main.name, decode.name) == ("main", "decode")
    states = [
        {state.name: list(state.type.stateType.arrayType.shape) for state in each.state}
        for each in (main, decode)
    ]
    kinds = SparseLayout(config.sparse or SPARSE, CONTEXT).states
    assert kinds["keys"] == 704 and kinds["fine"] == 43 and kinds.get("coarse", 10) == 10
    assert states[0] == states[1]
    assert states[0] == {
        f"{kind}_{layer}": [2, rows, 64]
        for kind, rows in kinds.items()
        for layer in range(config.num_hidden_layers)
    }
    sizes = [[i.type.multiArrayType.shapeRange.sizeRanges for i in each.input] for each in (main, decode)]
    assert [(each.lowerBound, each.upperBound) for each in sizes[0][0]] == [(1, 1), (1, 256)]
    assert [list(each.type.multiArrayType.shape) for each in decode.input] == [[1, 1], [1]]
    reloaded = saved(artifact)
    for name, info in source.tensors.items():
        if len(info.shape) == 2:
            for function in ("main", "decode"):
                found = reloaded.constant(name.replace(".", "_"), function)
                np.testing.assert_array_equal(found, source.floats(name).astype(np.float16), err_msg=name)
    result = check_artifact(artifact.path)
    assert result.passed and result.agreement == 1
    assert len(read_reference(artifact).tokens) > 320 and len(result.remarks) == 1


@pytest.mark.parametrize("wrong", ["worst blocks", "stale summaries"])
def test_the_check_finds_a_wrong_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str):
    source = make_source(tmp_path, network(SPARSE), QuantScheme("f16"), change=sharper(8))
    if wrong == "worst blocks":
        taken = SparseAttention._taken
        monkeypatch.setattr(
            SparseAttention,
            "_taken",
            lambda self, scores: taken(self, self.mb.exp(x=self.mb.mul(x=scores, y=-1.0))),
        )
    else:
        monkeypatch.setattr(SparseLayout, "updated", lambda self, windows, stride, tokens: 1)
    assert not check_artifact(export_model(source, COREML, tmp_path / "out").path).passed


def test_a_reference_that_is_too_short_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "_MOST_WORK", 0)
    artifact = export_model(make_source(tmp_path, network(SPARSE)), COREML, tmp_path / "out")
    result = check_artifact(artifact.path)
    assert result.passed and "chooses blocks only beyond 320" in result.remarks[1]


def test_what_can_not_be_sparse(tmp_path: Path):
    asked = replace(COREML, attention="sparse")
    for sparse, context, reason in (
        (replace(SPARSE, use_nope=True), CONTEXT, "use_nope"),
        (replace(SPARSE, block_size=32), CONTEXT, "block_size of 64"),
        (replace(SPARSE, kernel_size=24, kernel_stride=8), CONTEXT, "multiples of 16"),
        (SPARSE, 200, "does not go beyond dense_len"),
        (replace(SPARSE, kernel_size=128, dense_len=-1), 60, "shorter than a kernel"),
    ):
        source = make_source(
            tmp_path, llama_config(num_hidden_layers=1, max_position_embeddings=CONTEXT, sparse=sparse)
        )
        with pytest.raises(ConfigError, match=reason):
            plan_export(source, replace(asked, context=context))
        assert plan_export(source, replace(COREML, context=context)).attention == "dense"
    source = make_source(tmp_path, llama_config(num_hidden_layers=1, max_position_embeddings=16384))
    assert plan_export(source, asked).attention == "sparse"  # the published constants
    assert plan_export(source, COREML).attention == "dense"
