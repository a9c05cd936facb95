"""Runs that begin with what another run or a model's folder has: quantization-aware, and with longer rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.draft import DraftCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import ModelConfig
from edge.config.draft_names import public_name
from edge.errors import EdgeError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import load_decoder
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme
from edge.train.checkpoints import load_weights
from edge.train.distributed import World
from edge.train.network import build, model_config
from edge.train.objective import Objective
from edge.train.quantized import fake_quantize
from edge.train.saving import load_multi_token
from edge.train.texts import open_texts
from tests.export.tiny import byte_tokenizer_files
from tests.train.runs import assert_same_run, losses, run, run_config, weights, write_texts

MODEL = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "vocab_size": 300}


def trained_network(folder: Path, name: str, **sections: Any) -> Objective:
    """The module that a run has at its end."""
    config = run_config(folder, **sections)
    objective = build(config, open_texts(config), World(), print).objective
    load_weights(folder / name / "checkpoints", objective, World(), print)
    return objective


@pytest.mark.parametrize("scheme", ["ternary-row", "int4-g32"])
def test_what_is_exported_is_what_a_quantization_aware_stage_computed_with(tmp_path: Path, scheme: str):
    """Float run, quantization-aware run from its weights, `edge.hub.convert`: bit for bit, and the held-out
    loss of the saved model is that of the log.
    """
    write_texts(tmp_path / "texts", tokenizer=byte_tokenizer_files())
    run(tmp_path, "float", model=MODEL, loss={"multi_token": 0.3})
    stage: dict[str, Any] = {
        "model": MODEL,
        "quantization": {"scheme": scheme},
        "start": {"path": str(tmp_path / "float")},
    }
    run(tmp_path, "stage", **stage)
    module = trained_network(tmp_path, "stage", **stage)
    chosen = QuantScheme.from_name(scheme)
    wanted = {
        name: fake_quantize(each, chosen) if ".layers." in name and each.dim() == 2 else each
        for name, each in module.decoder.state_dict().items()
    }
    saved = weights(tmp_path / "stage")
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(each, wanted[name]) for name, each in saved.items())
    assert any(not torch.equal(each, module.decoder.state_dict()[name]) for name, each in saved.items())
    checkpoint = HuggingFaceCheckpoint(tmp_path / "stage" / "model")
    convert(checkpoint, tmp_path / "bundle", quantize=chosen.kind, head="f16")
    bundle = Bundle.open(tmp_path / "bundle")
    for name, tensor in bundle.tensors.items():
        found = dequantize(bundle.data(name), tensor.scheme, tensor.rows, tensor.columns)
        if "_proj" in name:
            assert tensor.scheme.kind == chosen.kind
            np.testing.assert_array_equal(found.reshape(tensor.shape), saved[name].numpy(), err_msg=name)
    config = run_config(tmp_path, **stage)
    batch = open_texts(config).loader.next()
    plain = Objective(load_decoder(tmp_path / "stage" / "model")).eval()
    plain.use_attention(module.decoder.model.layers[0].self_attn.attend)
    torch.testing.assert_close(plain(*batch).next_token, module.eval()(*batch).next_token)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and a run that predicts two tokens."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, "first", loss={"multi_token": 0.3})
    return folder


def test_a_run_with_a_multi_token_layer_can_be_gone_on_from(first: Path):
    """Its folder has a file of weights beside the checkpoints, and is no model's folder for that."""
    run(first, "next", start={"path": str(first / "first")})
    run(first, "all", start={"path": str(first / "first"), "what": "everything"}, loss={"multi_token": 0.3},
        schedule={"steps": 8})  # fmt: skip
    assert len(losses(first / "next")) == 6 and len(losses(first / "all")) == 2
    layer = load_multi_token(first / "first", HuggingFaceCheckpoint(first / "first" / "model").config)
    module = trained_network(first, "first", loss={"multi_token": 0.3})
    assert module.multi_token is not None
    for name, each in module.multi_token.state_dict().items():
        assert torch.equal(layer.state_dict()[name], each), name


def test_the_multi_token_layer_of_a_run_is_a_draft_of_its_model(first: Path):
    """Named by the run's folder, with all that the saved model's config says."""
    config = HuggingFaceCheckpoint(first / "first" / "model").config
    draft = DraftCheckpoint(first / "first", config)
    assert draft.config == draft_shape(config, "mtp")
    layer = load_multi_token(first / "first", config).state_dict()
    assert len(draft.tensors) == len(layer)
    for info in draft.tensors:
        np.testing.assert_array_equal(draft.read_float32(info.name), layer[public_name("mtp", info.name)])


def test_a_second_stage_takes_the_multi_token_layer_over(first: Path):
    config = run_config(first, start={"path": str(first / "first")}, loss={"multi_token": 0.3}, seed=5)
    found = build(config, open_texts(config), World(), print).objective
    trained = trained_network(first, "first", loss={"multi_token": 0.3}).state_dict()
    assert any(name.startswith("multi_token.") for name in trained)
    for name, each in found.state_dict().items():
        assert torch.equal(each, trained[name]), name


def test_a_stage_goes_on_without_the_run_that_it_began_with(tmp_path: Path):
    """Its own checkpoint has all; the other run may have been moved."""
    run(tmp_path, "first")
    start = {"path": str(tmp_path / "first")}
    run(tmp_path, "whole", start=start)
    run(tmp_path, "moved", start=start)
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "step-00000006")
    shutil.rmtree(tmp_path / "moved" / "model")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    run(tmp_path, "moved", start=start)
    assert_same_run(tmp_path / "moved", tmp_path / "whole")


def test_a_models_folder_gives_its_shape_and_weights(first: Path):
    """And none of the model options is needed."""
    start = {"path": str(first / "first" / "model")}
    config = run_config(first, start=start, model={"preset": "minicpm4-0.5b"})
    found = build(config, open_texts(config), World(), print)
    assert found.config == HuggingFaceCheckpoint(first / "first" / "model").config
    for name, each in weights(first / "first").items():
        assert torch.equal(found.objective.decoder.state_dict()[name], each)
    run(first, "from-model", start=start)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another shape, everything": (
        {"model": {"intermediate_size": 64}, "start": {"path": "RUN", "what": "everything"}},
        r"gate_proj",
    ),
    "another shape, weights": (
        {"model": {"num_hidden_layers": 3}, "start": {"path": "RUN"}},
        r"layers\.2\.",
    ),
    "another optimizer": (
        {
            "loss": {"multi_token": 0.3},
            "optimizer": {"kind": "muon"},
            "start": {"path": "RUN", "what": "everything"},
        },
        "has AdamW's state of .* which this run does not train with AdamW",
    ),
    "no second token": (
        {"start": {"path": "RUN", "what": "everything"}},
        "multi_token",
    ),
    "everything of a model": (
        {"start": {"path": "RUN/model", "what": "everything"}},
        "is a model and holds weights only",
    ),
    "a model of another shape": (
        {"model": {"intermediate_size": 64}, "start": {"path": "RUN/model"}},
        r"does not fit the run's network: its tensor '.*' has shape \(.*\), not \(.*\); leave the sizes in",
    ),
    "a model of fewer layers": (
        {"model": {"num_hidden_layers": 3}, "start": {"path": "RUN/model"}},
        r"does not fit the run's network: its tensor 'model.layers.2.* has shape None",
    ),
    "nowhere": ({"start": {"path": "nowhere"}}, "'nowhere' has no checkpoints"),
    "nowhere, everything": (
        {"start": {"path": "nowhere", "what": "everything"}},
        "'nowhere' has no checkpoints; name the folder of a run, or one of its checkpoints",
    ),
    "no such step": (
        {"start": {"path": "RUN/checkpoints/step-00000003"}},
        r"has no checkpoint of step 3; there are 4, 6\.",
    ),
    "a file": ({"start": {"path": "RUN/log.jsonl"}}, "has no checkpoints"),
}


@pytest.mark.parametrize(("sections", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name(
    first: Path, tmp_path: Path, sections: dict[str, Any], sentence: str
):
    path = sections["start"]["path"].replace("RUN", str(first / "first"))
    sections = {**sections, "start": {**sections["start"], "path": path}}
    with pytest.raises(EdgeError, match=sentence):
        run(first, str(tmp_path / "run"), **sections)
    assert not (tmp_path / "run" / "log.jsonl").exists()


FACTORS = [1.0 + i / 4 for i in range(8)]
LONG: dict[str, Any] = {
    "model": {
        "sparse": {
            "kernel_size": 4,
            "kernel_stride": 2,
            "block_size": 4,
            "init_blocks": 1,
            "window_size": 4,
            "topk": 3,
            "dense_len": 12,
        },
        "rope": {
            "type": "longrope",
            "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8,
            "long_factor": FACTORS,
        },
    },
    "data": {"length": 64, "rows": 2, "buckets": [16, 64, 100]},
    "attention": {"kind": "sparse"},
}


def test_a_long_stage_reads_long_rows_sparsely(tmp_path: Path):
    """From a dense run of short rows: LongRoPE's long factors are in use, and attention leaves blocks out."""
    write_texts(tmp_path / "texts", longest=100, documents=40)
    run(tmp_path, "short")
    stage = {**LONG, "start": {"path": str(tmp_path / "short")}}
    run(tmp_path, "long", **stage)
    found = losses(tmp_path / "long")
    assert all(map(np.isfinite, found)) and len(found) == 6
    config = run_config(tmp_path, **stage)
    texts = open_texts(config)
    shape: ModelConfig = model_config(config, texts.any)
    built = build(config, texts, World(), print).objective
    wanted = Decoder(shape, 100).model.rotary
    assert torch.equal(built.decoder.model.rotary.inverse_frequency, wanted.inverse_frequency)
    assert torch.equal(built.decoder.model.rotary.scale, wanted.scale) and bool((wanted.scale > 1).all())
    assert not torch.equal(wanted.inverse_frequency, Decoder(shape, 32).model.rotary.inverse_frequency)
    run(tmp_path, "dense", **{**stage, "attention": {"kind": "dense"}})
    dense = losses(tmp_path / "dense")
    assert found[0] == pytest.approx(dense[0], rel=1e-6), "documents of up to 12 tokens are dense anyhow"
    assert found[1:] != pytest.approx(dense[1:], rel=1e-4)
    saved = HuggingFaceCheckpoint(tmp_path / "long" / "model").config
    assert saved.sparse == shape.sparse and saved.rope == shape.rope


def test_sparse_attention_that_leaves_nothing_out_is_dense(tmp_path: Path):
    write_texts(tmp_path / "texts", longest=100, documents=40)
    sections = {**LONG, "model": {**LONG["model"], "sparse": {**LONG["model"]["sparse"], "topk": 100}}}
    run(tmp_path, "sparse", **sections)
    run(tmp_path, "dense", **{**sections, "attention": {"kind": "dense"}})
    assert losses(tmp_path / "sparse") == pytest.approx(losses(tmp_path / "dense"), rel=1e-4)
