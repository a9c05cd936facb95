"""From a checkpoint to a bundle: what layers see, smoothing, resuming, determinism, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.base import Checkpoint
from edge.checkpoints.synthetic import RandomCheckpoint
from edge.checkpoints.weights import read_float32
from edge.config import ModelConfig
from edge.errors import BundleError, ExportError
from edge.export.calibration import calibration, default_text
from edge.export.quantize import QuantizeOptions, quantize_checkpoint, report_path
from edge.export.quantize.activations import Stream, load_layer
from edge.export.quantize.calibrated import embed, quantize_layer, read_layer
from edge.export.quantize.smooth import STAGES, channel_strength, smooth
from edge.formats.bundle.reader import Bundle
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme


@pytest.fixture
def sequences(checkpoint: RandomCheckpoint, text: Path) -> torch.Tensor:
    return torch.from_numpy(calibration(checkpoint, text, 6, 64).tokens)


@pytest.fixture
def network(checkpoint: RandomCheckpoint) -> Decoder:
    tensors = {
        info.name: torch.from_numpy(read_float32(checkpoint, info.name)) for info in checkpoint.tensors
    }
    return Decoder.from_tensors(checkpoint.config, tensors, 64)


@torch.no_grad()
def test_layers_see_what_the_whole_network_computes(
    checkpoint: RandomCheckpoint, text: Path, sequences: torch.Tensor, network: Decoder
):
    """The stream after every layer, and X^T X of every stage."""
    inputs: dict[tuple[int, str], torch.Tensor] = {}
    names = [stage.consumers[0] for stage in STAGES]
    for index, layer in enumerate(network.model.layers):
        for name in names:
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, given, key=(index, name): inputs.__setitem__(key, given[0])
            )
    wanted = network.trunk(sequences)
    stream = Stream(checkpoint.config, embed(checkpoint, calibration(checkpoint, text, 6, 64)))
    for index in range(checkpoint.config.num_hidden_layers):
        layer = load_layer(checkpoint.config, index, read_layer(checkpoint, index))
        for name, gram in zip(names, stream.grams(layer, names, masked=False), strict=True):
            x = inputs[index, name].flatten(0, 1).double()
            torch.testing.assert_close(gram.double(), x.t() @ x, rtol=1e-3, atol=1e-3)
        (alone,) = stream.grams(layer, names[-1:], masked=False)
        torch.testing.assert_close(alone, gram, rtol=0, atol=0)
        stream.advance(layer)
        torch.testing.assert_close(stream.hidden, wanted.stream[index], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [False, True])
def test_a_layer_sees_what_the_quantized_layers_before_it_leave(
    checkpoint: RandomCheckpoint, options, text: Path, tmp_path: Path, smoothing: bool
):
    """Every layer of a run is what quantizing it alone gives, on the text after the layers of the bundle."""
    chosen = options(method="gptq", smooth=smoothing)
    quantize_checkpoint(checkpoint, tmp_path / "out", chosen)
    bundle, config = Bundle.open(tmp_path / "out"), checkpoint.config
    torch.set_num_threads(1)
    hidden = embed(checkpoint, calibration(checkpoint, text, 6, 64))
    stream = Stream(config, hidden.clone())
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        layer = load_layer(config, index, read_layer(checkpoint, index))
        packed, _, _ = quantize_layer(layer, prefix, stream, chosen, lambda name: None)
        assert len(packed) == 9
        for name, data in packed.items():
            np.testing.assert_array_equal(bundle.data(name)[: data.size], data, err_msg=name)
        stored = {
            name.removeprefix(prefix): dequantize(
                bundle.data(name), tensor.scheme, tensor.rows, tensor.columns
            )
            for name, tensor in bundle.tensors.items()
            if name.startswith(prefix)
        }
        tensors = {
            name: torch.from_numpy(values.reshape(-1) if "norm" in name else values)
            for name, values in stored.items()
        }
        stream.advance(load_layer(config, index, tensors))
    alone, last = Stream(config, hidden), config.num_hidden_layers - 1
    layer = load_layer(config, last, read_layer(checkpoint, last))
    packed, _, _ = quantize_layer(layer, f"model.layers.{last}.", alone, chosen, lambda name: None)
    name = f"model.layers.{last}.mlp.down_proj.weight"
    assert (packed[name] != bundle.data(name)[: packed[name].size]).any(), (
        "the embedding gives something else"
    )


@torch.no_grad()
def test_the_strength_of_a_channel(checkpoint: RandomCheckpoint):
    """Roots of mean squares, of geometric mean 1; query heads that read the same values share their mean."""
    layer = load_layer(checkpoint.config, 0, read_layer(checkpoint, 0))  # 6 heads of 16, 3 to a KV head
    diagonal = torch.linspace(1, 9, 96)
    strength = channel_strength(layer, STAGES[0], diagonal)
    torch.testing.assert_close(strength / strength[0], (diagonal / diagonal[0]).sqrt())
    assert float(strength.log().mean()) == pytest.approx(0, abs=1e-6)

    loud = torch.ones(96)
    loud[16:32] = 13.0  # the second head of the first group: mean of 1, 13 and 1 is 5
    strength = channel_strength(layer, STAGES[1], loud)
    wanted = torch.cat([torch.full((48,), 5.0), torch.ones(48)]).sqrt()
    torch.testing.assert_close(strength, wanted / 5**0.25)


@torch.no_grad()
def test_channels_that_are_equally_loud_are_left_alone(checkpoint: RandomCheckpoint):
    """Every exponent does the same there: the first is taken, which is none."""
    layer = load_layer(checkpoint.config, 0, read_layer(checkpoint, 0))
    before = layer.get_parameter("mlp.gate_proj.weight").clone()
    assert smooth(layer, STAGES[2], 2 * torch.eye(96), QuantScheme("int4", 32)) == 0
    torch.testing.assert_close(layer.get_parameter("mlp.gate_proj.weight"), before, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["minicpm", "oak"])
def test_smoothing_leaves_the_function(checkpoint: Checkpoint, oak_checkpoint, text: Path, family: str):
    """Every stage at once; channels are made unequal first, so that there is something to smooth."""
    checkpoint = oak_checkpoint if family == "oak" else checkpoint
    config = checkpoint.config
    tensors = read_layer(checkpoint, 1)
    loud = torch.ones(96)
    loud[::7] = 20.0
    tensors["input_layernorm.weight"] = loud.clone()
    tensors["post_attention_layernorm.weight"] = loud.flip(0).clone()
    tensors["mlp.up_proj.weight"][::9] *= 15
    tensors["self_attn.v_proj.weight"][::5] *= 15
    layer = load_layer(config, 1, tensors)
    hidden = embed(checkpoint, calibration(checkpoint, text, 6, 64))
    before, stream = Stream(config, hidden.clone()), Stream(config, hidden)
    before.advance(layer)
    names = [stage.consumers[0] for stage in STAGES]
    old = {name: layer.get_parameter(f"{name}.weight").clone() for name in names}
    for stage, gram in zip(STAGES, stream.grams(layer, names, masked=False), strict=True):
        assert smooth(layer, stage, gram, QuantScheme("int4", 32)) > 0, stage.producer
    for name in names:
        assert not torch.equal(old[name], layer.get_parameter(f"{name}.weight")), name
    stream.advance(layer)
    torch.testing.assert_close(
        stream.hidden, before.hidden, rtol=1e-4, atol=1e-4 * float(before.hidden.std())
    )


@torch.no_grad()
def test_calibration_pays(checkpoint: RandomCheckpoint, options, sequences, network: Decoder, tmp_path: Path):
    """Hidden states on the calibration text: GPTQ nearer to the source than round-to-nearest."""
    wanted, distances = network.trunk(sequences).hidden, {}
    for name, chosen in {
        "rtn": options(calibration=None),
        "smooth": options(smooth=True),
        "gptq": options(method="gptq"),
        "s-p-gptq": options(method="p-gptq", smooth=True),
    }.items():
        quantize_checkpoint(checkpoint, tmp_path / name, chosen)
        found = reference_from_bundle(Bundle.open(tmp_path / name), 64).trunk(sequences).hidden
        distances[name] = float((found - wanted).square().mean())
    assert distances["gptq"] < 0.7 * distances["rtn"]
    assert distances["s-p-gptq"] < 0.7 * distances["rtn"]
    assert distances["smooth"] < 1.05 * distances["rtn"]


def test_the_report(checkpoint: RandomCheckpoint, options, tmp_path: Path, text: Path):
    """It lies beside the bundle, has every matrix, and its weight errors are those of the bundle."""
    seen = []
    report = quantize_checkpoint(
        checkpoint, tmp_path / "out", options(method="gptq"), lambda *step: seen.append(step)
    )
    assert json.loads(report_path(tmp_path / "out").read_text()) == report
    assert report["options"]["calibration"] == report["calibration"]["source"] == str(text)
    assert report["options"]["method"] == "gptq" and report["options"]["sequences"] == 6
    bundle = Bundle.open(tmp_path / "out")
    names = []
    for index, layer in enumerate(report["layers"]):
        assert layer["layer"] == index
        for matrix in layer["matrices"]:
            names.append(matrix["name"])
            tensor = bundle.tensors[matrix["name"]]
            assert tensor.scheme == QuantScheme("int4", 32) and not tensor.exact
            weights = read_float32(checkpoint, matrix["name"])
            found = dequantize(bundle.data(matrix["name"]), tensor.scheme, *weights.shape)
            error = np.square(found - weights).sum() / np.square(weights).sum()
            assert 0 < matrix["output_error"] < 0.1
            assert matrix["weight_error"] == pytest.approx(error, rel=1e-3)
    assert names == [name for name in bundle.tensors if "_proj" in name] and len(names) == 21
    assert bundle.tensors["lm_head.weight"].scheme == QuantScheme("int8", 32)
    assert [name for _, _, name in seen] == [*names, ""]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen) and seen[-1][0] == seen[-1][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.quantization.json"]


class Stop(Exception):
    """What a test raises in the middle of a run."""


def stop_at(name: str) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, at: str) -> None:
        if at == name:
            raise Stop

    return progress


@pytest.mark.parametrize("smoothing", [False, True])
def test_an_interrupted_run_goes_on(checkpoint: RandomCheckpoint, options, tmp_path: Path, smoothing: bool):
    chosen = options(method="p-gptq", smooth=smoothing)
    quantize_checkpoint(checkpoint, tmp_path / "whole", chosen)
    with pytest.raises(Stop):
        quantize_checkpoint(
            checkpoint, tmp_path / "out", chosen, stop_at("model.layers.2.mlp.up_proj.weight")
        )
    assert not (tmp_path / "out").exists()
    seen: list[str] = []
    report = quantize_checkpoint(
        checkpoint, tmp_path / "out", chosen, lambda done, total, name: seen.append(name)
    )
    assert seen[0] == "model.layers.2.self_attn.q_proj.weight"
    whole, out = Bundle.open(tmp_path / "whole"), Bundle.open(tmp_path / "out")
    assert out.content_hash == whole.content_hash
    expected = json.loads(report_path(tmp_path / "whole").read_text())
    for ours, theirs in zip(report["layers"], expected["layers"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", ["option", "text", "weights", "damage"])
def test_another_job_starts_clean(checkpoint, options, tmp_path: Path, text: Path, change: str):
    chosen = options(method="gptq")
    with pytest.raises(Stop):
        quantize_checkpoint(
            checkpoint, tmp_path / "out", chosen, stop_at("model.layers.1.mlp.up_proj.weight")
        )
    if change == "option":
        chosen = replace(chosen, damping=0.02)
    elif change == "text":
        (tmp_path / "text").write_text(text.read_text().replace("sheep", "horses"))
        chosen = replace(chosen, calibration=tmp_path / "text")
    elif change == "weights":
        checkpoint = Louder(checkpoint)
    else:
        next(tmp_path.glob(".out.quantizing/layer-000*")).write_bytes(b"half")
    seen: list[str] = []
    quantize_checkpoint(checkpoint, tmp_path / "out", chosen, lambda done, total, name: seen.append(name))
    assert seen[0] == "model.layers.0.self_attn.q_proj.weight"
    quantize_checkpoint(checkpoint, tmp_path / "again", chosen)
    assert (
        Bundle.open(tmp_path / "out").content_hash == Bundle.open(tmp_path / "again").content_hash
    )  # and it is deterministic


class Louder(RandomCheckpoint):
    """The same checkpoint with one other matrix in its first layer, under the same name."""

    def __init__(self, plain: RandomCheckpoint) -> None:
        super().__init__(plain.config, QuantScheme("f16"))
        self._plain = plain

    @property
    def source(self) -> str:
        return self._plain.source

    def read(self, name: str) -> Any:
        read = self._plain.read(name)
        if name != "model.layers.0.mlp.up_proj.weight":
            return read
        return read_float32(self._plain, name)[:, ::-1]


@pytest.mark.parametrize("quantize", ["int4-g128", "int4", "int8", "source"])
def test_without_calibration(checkpoint: RandomCheckpoint, tmp_path: Path, quantize: str):
    report = quantize_checkpoint(checkpoint, tmp_path / "out", QuantizeOptions(quantize))
    scheme = Bundle.open(tmp_path / "out").tensors["model.layers.0.mlp.up_proj.weight"].scheme
    wanted = {"int4-g128": QuantScheme("int4", 128), "int4": QuantScheme("int4", 32)}
    assert scheme == {**wanted, "int8": QuantScheme("int8", 32), "source": QuantScheme("f16")}[quantize]
    errors = [matrix["weight_error"] for layer in report["layers"] for matrix in layer["matrices"]]
    low, high = {"int4-g128": (1e-3, 3e-2), "int4": (1e-3, 2e-2), "int8": (1e-6, 1e-4), "source": (0, 0)}[
        quantize
    ]
    assert len(errors) == 21 and all(low <= error <= high for error in errors)


def test_texts_that_do_not_serve(checkpoint: RandomCheckpoint, tmp_path: Path, options):
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("A few words.")
    binary.write_bytes(b"\xff\xfe\x80")
    for path, sentence in (
        (short, r"short\.txt.* has 12 tokens, but 6 sequences of 64 need 378; give a longer text"),
        (binary, r"binary\.txt' is not a UTF-8 text"),
        (tmp_path / "absent.txt", r"Cannot read the calibration text .*absent\.txt"),
    ):
        with pytest.raises(ExportError, match=sentence):
            quantize_checkpoint(checkpoint, tmp_path / "out", options(method="gptq", calibration=path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "short.txt"]


def test_calibration_sequences(checkpoint: RandomCheckpoint, text: Path):
    """A BOS in front of each, pieces of the text behind it that do not overlap, the same every time."""
    found = calibration(checkpoint, text, 6, 64)
    assert found.tokens.shape == (6, 64) and (found.tokens[:, 0] == 1).all()
    assert found.sha256 == calibration(checkpoint, text, 6, 64).sha256
    content = text.read_bytes()
    pieces = [bytes((row[1:] - 3).tolist()) for row in found.tokens]  # 3 special tokens, then the bytes
    places = [content.index(piece) for piece in pieces]
    assert places[0] == 0 and places[-1] == len(content) - 63
    assert all(second - first >= 63 for first, second in pairwise(places))
    assert len(default_text()) > 300_000


def test_options_that_contradict():
    for fields, sentence in (
        ({"quantize": "int3"}, "Unknown quantization 'int3'; choose one of int4, int8"),
        ({"quantize": "int4", "method": "awq"}, "Unknown method 'awq'"),
        ({"quantize": "int4", "length": 4}, "length must be 8 or more"),
        ({"quantize": "int4", "damping": 0.0}, "damping"),
        ({"quantize": "ternary", "method": "gptq"}, "'ternary' leaves nothing to calibrate"),
        ({"quantize": "source", "smooth": True}, "'source' leaves nothing to calibrate"),
        ({"quantize": "int4-min", "method": "gptq"}, "'int4-min' leaves nothing to calibrate"),
        ({"quantize": "none"}, "'none' is called 'source' now"),
        ({"quantize": "int4", "head": "ternary"}, "choose int4, int8 or f16 as the head"),
    ):
        with pytest.raises(ExportError, match=sentence):
            QuantizeOptions(**fields)


@pytest.mark.parametrize(
    ("field", "fits", "wrong"),
    [
        ("sequences", 1, 0),
        ("length", 8, 7),
        ("threads", 1, 0),
        ("damping", 1.0, 1.001),
        ("damping", 1e-9, -0.01),
        ("damping", 0.5, float("nan")),
    ],
)
def test_options_up_to_the_border(field, fits, wrong):
    assert getattr(QuantizeOptions("int4", method="gptq", **{field: fits}), field) == fits
    with pytest.raises(ExportError, match=f"{field} must be "):
        QuantizeOptions("int4", method="gptq", **{field: wrong})


def test_what_is_calibrated_and_its_defaults():
    plain = QuantizeOptions("int4")
    assert (plain.method, plain.sequences, plain.length, plain.head) == ("rtn", 64, 512, "int8")
    assert (plain.damping, plain.act_order, plain.smooth, plain.calibration) == (0.01, True, False, None)
    assert not plain.is_calibrated
    for options in ({"smooth": True}, {"method": "gptq"}, {"method": "p-gptq"}):
        assert QuantizeOptions("int4", **options).is_calibrated


def test_the_memory_of_a_calibrated_run(config: ModelConfig):
    """Of the shapes 96, 160, 6 and 2 heads of 16: one layer with 3 grams, or a large embedding."""
    options = QuantizeOptions("int4", sequences=5, length=50)
    stream = 2 * 5 * 50 * 96
    layer = 96 * (96 + 96 + 2 * 32 + 3 * 160) + 3 * 160 * 160
    assert options.memory(config) == (400 << 20) + 4 * (layer + stream)
    large = replace(config, vocab_size=10_000)
    assert options.memory(large) == (400 << 20) + 4 * (10_000 * 96 + stream)


def test_a_text_that_just_suffices(checkpoint: RandomCheckpoint, tmp_path: Path):
    """6 pieces of 63 letters behind their BOS; with one letter less they would overlap."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefghi" * 42)
    assert calibration(checkpoint, path, 6, 64).source == str(path)
    path.write_text(("abcdefghi" * 42)[1:])
    with pytest.raises(ExportError, match="has 377 tokens, but 6 sequences of 64 need 378"):
        calibration(checkpoint, path, 6, 64)


def test_places_that_cannot_be_written(checkpoint: RandomCheckpoint, options, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="exists already"):
        quantize_checkpoint(checkpoint, tmp_path / "file", options(method="gptq"))
    for chosen, error in ((options(method="gptq"), ExportError), (options(), BundleError)):
        with pytest.raises(error, match="file"):
            quantize_checkpoint(checkpoint, tmp_path / "file" / "out", chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_experts_are_refused(checkpoint: RandomCheckpoint, options, tmp_path: Path, config: ModelConfig):
    class Experts(RandomCheckpoint):
        @property
        def config(self) -> ModelConfig:
            return replace(config, num_experts=4, num_experts_per_tok=2)

    with pytest.raises(Exception, match="num_experts is 4"):
        quantize_checkpoint(Experts(config, QuantScheme("f16")), tmp_path / "out", options(method="gptq"))
