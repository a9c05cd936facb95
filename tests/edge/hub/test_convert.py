"""Conversion: which scheme each tensor gets, exactness, what is refused, and the memory it takes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config.tensors import expected_tensors
from edge.errors import BundleError, CheckpointError, ConfigError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.packing import dequantize, pack, unpack
from edge.quant.rounding import quantize
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme

ROOT = Path(__file__).resolve().parents[3]
BODY = "model.layers.1.mlp.down_proj.weight"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


def values(bundle: Bundle, name: str) -> np.ndarray:
    tensor = bundle.tensors[name]
    return dequantize(bundle.data(name), tensor.scheme, tensor.rows, tensor.columns)


@pytest.mark.parametrize(
    ("options", "body", "head"),
    [
        ({}, "f16", "f16"),
        ({"quantize": "source"}, "f16", "f16"),
        ({"quantize": "f16"}, "f16", "f16"),
        ({"quantize": "int4"}, "int4-g32", "int4-g32"),
        ({"quantize": "int4-g128"}, "int4-g128", "int4-g128"),
        ({"quantize": "int4-row", "head": "int8"}, "int4-row", "int8-g32"),
        ({"quantize": "int8"}, "int8-g32", "int8-g32"),
        ({"head": "int8"}, "f16", "int8-g32"),
        ({"quantize": "int4", "head": "f16"}, "int4-g32", "f16"),
    ],
)
def test_schemes(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, options: dict[str, Any], body: str, head: str
) -> None:
    convert(array_checkpoint(tiny_config), tmp_path / "b", **options)
    bundle = Bundle.open(tmp_path / "b", verify=True)
    for name, tensor in bundle.tensors.items():
        expected = "f32" if len(tensor.shape) == 1 else head if name in (EMBEDDING, HEAD) else body
        assert str(tensor.scheme) == expected


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_values_are_those_of_the_quantizer(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, name: str
) -> None:
    """Blocks of rows change nothing: the same bytes as the whole matrix at once."""
    config = replace(
        tiny_config, vocab_size=3001, hidden_size=1568
    )  # several blocks, odd numbers of odd tiles
    checkpoint = array_checkpoint(config)
    convert(checkpoint, tmp_path / "b", quantize=name)
    bundle = Bundle.open(tmp_path / "b")
    for tensor in (EMBEDDING, HEAD, BODY):
        scheme = QuantScheme.from_name(name)
        whole = pack(quantize(checkpoint.weights[tensor], scheme), scheme)
        np.testing.assert_array_equal(bundle.data(tensor), whole)


def test_float16_says_whether_it_rounded(tmp_path: Path, tiny_config: Any, array_checkpoint: Make) -> None:
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.weights[BODY] = checkpoint.weights[BODY].astype(np.float16).astype(np.float32)
    convert(checkpoint, tmp_path / "b")
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.tensors[BODY].exact and bundle.tensors[NORM].exact
    assert not bundle.tensors[HEAD].exact
    np.testing.assert_array_equal(values(bundle, BODY), checkpoint.weights[BODY])
    np.testing.assert_allclose(values(bundle, HEAD), checkpoint.weights[HEAD], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("row", [0, 40, 76])
def test_one_rounded_value_in_any_block_tells(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.hub.convert._BLOCK_WEIGHTS", 32 * 40)  # 77 rows are three blocks
    checkpoint = array_checkpoint(tiny_config)
    head = checkpoint.weights[HEAD].astype(np.float16).astype(np.float32)
    head[row, 3] = 1 + 2**-12
    checkpoint.weights[HEAD] = head
    convert(checkpoint, tmp_path / "b")
    assert not Bundle.open(tmp_path / "b").tensors[HEAD].exact


@pytest.mark.parametrize(
    "scheme",
    [QuantScheme("int4", 32, minimum=True), QuantScheme("int8", 32), QuantScheme("ternary", 256)],
    ids=str,
)
def test_quantized_sources_stay_exact(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, scheme: QuantScheme
) -> None:
    checkpoint = array_checkpoint(tiny_config, scheme)
    convert(checkpoint, tmp_path / "keep")
    bundle = Bundle.open(tmp_path / "keep")
    source = checkpoint.weights[BODY]
    assert bundle.tensors[BODY].scheme == scheme and bundle.tensors[BODY].exact
    stored = unpack(bundle.data(BODY), scheme, *source.shape)
    assert isinstance(stored, QuantizedMatrix)
    np.testing.assert_array_equal(stored.codes, source.codes)
    np.testing.assert_array_equal(stored.scales, source.scales)

    convert(checkpoint, tmp_path / "again", quantize="int8-g64")
    bundle = Bundle.open(tmp_path / "again")
    assert str(bundle.tensors[BODY].scheme) == "int8-g64" and not bundle.tensors[BODY].exact
    expected = quantize(source.dequantize(), QuantScheme("int8", 64)).dequantize()
    np.testing.assert_array_equal(values(bundle, BODY), expected)


@pytest.mark.parametrize(("scale", "exact"), [(2.0**-7, True), (0.0123, False)])
def test_a_quantized_source_as_float16_is_exact_if_its_values_are(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, scale: float, exact: bool
) -> None:
    """Codes of 8 bits times a power of two fit in float16, times another float16 they do not."""
    checkpoint = array_checkpoint(tiny_config, QuantScheme("int8", 32))
    checkpoint.weights[BODY].scales[:] = scale
    convert(checkpoint, tmp_path / "b", quantize="f16")
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.tensors[BODY].exact == exact
    expected = checkpoint.weights[BODY].dequantize().astype(np.float16)
    np.testing.assert_array_equal(values(bundle, BODY), expected)


@pytest.mark.parametrize(
    ("quantized", "floats", "expected"),
    [
        (False, "auto", "int4-g32"),
        (True, "auto", "int8-g32"),  # the few floats beside quantized matrices matter
        (True, "int4-g64", "int4-g64"),
        (True, None, "f16"),
    ],
)
def test_what_floats_become(
    tmp_path: Path,
    tiny_config: Any,
    array_checkpoint: Make,
    quantized: bool,
    floats: str | None,
    expected: str,
) -> None:
    scheme = QuantScheme("int8", 64)
    checkpoint = array_checkpoint(tiny_config, scheme if quantized else None)
    checkpoint.weights[EMBEDDING] = np.ones(checkpoint.weights[EMBEDDING].shape, np.float32)
    convert(checkpoint, tmp_path / "b", floats=floats)
    tensors = Bundle.open(tmp_path / "b").tensors
    assert str(tensors[EMBEDDING].scheme) == expected
    assert str(tensors[BODY].scheme) == (str(scheme) if quantized else expected)


def test_packed_sources(tmp_path: Path, tiny_config: Any, array_checkpoint: Make) -> None:
    scheme = QuantScheme("int4", 32)
    checkpoint = array_checkpoint(tiny_config, scheme)
    plain = dict(checkpoint.weights)
    for name, weight in plain.items():
        if isinstance(weight, QuantizedMatrix):
            checkpoint.weights[name] = PackedMatrix(scheme, weight.shape, pack(weight, scheme))
    convert(checkpoint, tmp_path / "keep")
    np.testing.assert_array_equal(values(Bundle.open(tmp_path / "keep"), BODY), plain[BODY].dequantize())
    convert(checkpoint, tmp_path / "other", quantize="f16")
    other = values(Bundle.open(tmp_path / "other"), BODY)
    np.testing.assert_array_equal(other, plain[BODY].dequantize().astype(np.float16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [NORM, BODY, EMBEDDING])
def test_weights_that_are_not_finite(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, where: str, value: float
) -> None:
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.weights[where].reshape(-1)[-1] = value
    refuse(checkpoint, tmp_path, where, "NaN or infinite")


@pytest.mark.parametrize("part", ["scales", "minimums"])
@pytest.mark.parametrize("packed", [False, True])
def test_scales_that_are_not_finite(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, part: str, packed: bool
) -> None:
    scheme = QuantScheme("int4", 32, minimum=True)
    checkpoint = array_checkpoint(tiny_config, scheme)
    matrix = checkpoint.weights[BODY]
    getattr(matrix, part)[-1, -1] = np.inf
    if packed:
        checkpoint.weights[BODY] = PackedMatrix(scheme, matrix.shape, pack(matrix, scheme))
    refuse(checkpoint, tmp_path, BODY, "NaN or infinite")


def test_values_too_large_for_float16(tmp_path: Path, tiny_config: Any, array_checkpoint: Make) -> None:
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.weights[BODY][3, 3] = 1e6
    refuse(checkpoint, tmp_path, BODY, "1e+06")


def test_tensors_that_contradict_the_config(tmp_path: Path, tiny_config: Any, array_checkpoint: Make) -> None:
    for change, says in (
        (lambda weights: weights.pop(BODY), BODY),
        (lambda weights: weights.update({BODY: np.zeros((40, 99), np.float32)}), "40x99"),
        (lambda weights: weights.update({"x.bias": np.zeros(4, np.float32)}), "x.bias"),
    ):
        checkpoint = array_checkpoint(tiny_config)
        change(checkpoint.weights)
        refuse(checkpoint, tmp_path, says)


def test_a_reader_that_returns_another_shape(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make
) -> None:
    checkpoint = array_checkpoint(tiny_config)
    honest = checkpoint.read
    checkpoint.read = lambda name: honest(name)[:-1] if name == BODY else honest(name)
    refuse(checkpoint, tmp_path, BODY, "announced")


def refuse(checkpoint: Any, folder: Path, *says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        convert(checkpoint, folder / "b")
    for text in says:
        assert text in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not [path for path in folder.iterdir() if path.name != "cache"]


@pytest.mark.parametrize("options", [{"quantize": "int3"}, {"head": "q4"}, {"quantize": "int4-g48"}])
def test_wrong_options(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make, options: dict[str, Any]
) -> None:
    with pytest.raises(BundleError):
        convert(array_checkpoint(tiny_config), tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


def test_a_head_beside_tied_embeddings_is_refused(
    tmp_path: Path, tiny_config: Any, array_checkpoint: Make
) -> None:
    """Dropping it would be silent: readers decide between the two."""
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.config = replace(tiny_config, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=HEAD):
        convert(checkpoint, tmp_path / "b")


def test_progress(tmp_path: Path, tiny_config: Any, array_checkpoint: Make) -> None:
    calls: list[tuple[int, int, str]] = []
    convert(
        array_checkpoint(tiny_config),
        tmp_path / "b",
        quantize="int4",
        progress=lambda *call: calls.append(call),
    )
    total = sum(tensor.bytes for tensor in Bundle.open(tmp_path / "b").tensors.values())
    assert calls[0] == (0, total, EMBEDDING) and calls[-1] == (total, total, "")
    assert [call[2] for call in calls[:-1]] == list(expected_tensors(tiny_config))
    sizes = [Bundle.open(tmp_path / "b").tensors[call[2]].bytes for call in calls[:-1]]
    assert [call[0] for call in calls] == [sum(sizes[:i]) for i in range(len(calls))]
    assert {call[1] for call in calls} == {total}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ru_maxrss in kilobytes")
def test_memory_is_about_one_tensor(tmp_path: Path) -> None:
    """Four tensors of 64 MB of float32 go through a process that never grows by two of them."""
    code = """
        import resource, sys
        import numpy as np
        from edge.checkpoints.base import TensorInfo
        from edge.config.huggingface import config_from_hf
        from edge.hub.convert import convert
        from edge.quant.scheme import QuantScheme
        from edge.config.tensors import expected_tensors

        class Zeros:
            source, tokenizer_files, chat_template, generation_config = "zeros", {}, None, {}
            config = config_from_hf(dict(
                model_type="llama", vocab_size=8192, hidden_size=2048, intermediate_size=8192,
                num_attention_heads=16, num_key_value_heads=2, num_hidden_layers=1, rms_norm_eps=1e-5,
                max_position_embeddings=64, tie_word_embeddings=True))
            tensors = [TensorInfo(name, shape, "F32", QuantScheme("f16"))
                       for name, shape in expected_tensors(config).items()]
            def read(self, name):
                return np.full(expected_tensors(self.config)[name], 0.5, np.float32)

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before = peak()
        convert(Zeros(), sys.argv[1], quantize=sys.argv[2])
        print(peak() - before)
    """
    for name in ("int4", "f16"):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / name), name]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        assert float(result.stdout) < 2 * 64


def test_experts_are_refused(tiny_config: Any, array_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = array_checkpoint(replace(tiny_config, num_experts=4, num_experts_per_tok=2))
    with pytest.raises(ConfigError, match="num_experts is 4"):
        convert(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
