"""Plans before there is a bundle: they say what the export will do, and no weight is read for them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig, SparseConfig
from edge.config.presets import PRESETS, preset
from edge.export.artifact import dry_run, plan_export, small_files_bytes
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.bundle.manifest import MANIFEST
from edge.formats.bundle.planned import UnreadWeightsError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert, plan_bundle
from edge.quant.scheme import QuantScheme
from tests.oak import oak

from .tiny import llama_config, make_checkpoint, minicpm_config

TARGETS = {
    "bundle": ((), {}),
    "gguf": ((), {}),
    "coreml": (("coremltools",), {}),
    "onnx": (("onnx", "onnxruntime"), {}),
    "onnx-portable": (("onnx", "onnxruntime"), {"portable": True}),
    "executorch": (("executorch",), {}),
    "executorch-portable": (("executorch", "torchao"), {"portable": True}),
}
CASES = [
    pytest.param(minicpm_config(), QuantScheme("int4", 32), {}, id="int4"),
    pytest.param(llama_config(), QuantScheme("int8", 32), {}, id="int8"),
    pytest.param(oak(llama_config()), QuantScheme("int4", 32), {}, id="oak"),
    pytest.param(llama_config(), QuantScheme("f16"), {"quantize": "int4-g128", "head": "int8"}, id="float"),
    pytest.param(
        minicpm_config(
            sparse=SparseConfig(dense_len=64, topk=2, window_size=64), max_position_embeddings=512
        ),
        QuantScheme("int4", 32),
        {},
        id="sparse",
    ),
]


@pytest.mark.usefixtures("oak")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("config", "scheme", "quantize"), CASES)
def test_a_plan_needs_no_weights(
    tmp_path: Path, target: str, config: ModelConfig, scheme: QuantScheme, quantize: dict[str, Any]
):
    modules, given = TARGETS[target]
    for module in modules:
        pytest.importorskip(module)
    checkpoint = make_checkpoint(config, scheme)
    options = ExportOptions(target.partition("-")[0], **given)  # type: ignore[arg-type]
    planned = Source(plan_bundle(checkpoint, **quantize))
    convert(checkpoint, tmp_path / "bundle", **quantize)
    written = Source(Bundle.open(tmp_path / "bundle"))
    before, after = plan_export(planned, options), plan_export(written, options)
    if target == "bundle":  # only writing tells whether float16 holds every float
        files = dict(before.files), dict(after.files)
        assert files[0].pop(MANIFEST) == pytest.approx(files[1].pop(MANIFEST), rel=0.01)
        assert files[0] == files[1]
    else:
        assert before == after
    assert small_files_bytes(planned) == small_files_bytes(written)


WITHOUT = """
import json, sys

LIBRARIES = ("torch", "torchao", "executorch", "onnx", "onnxruntime", "onnxscript", "coremltools")


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARIES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


sys.meta_path.insert(0, Blocked())
from edge.export.artifact import dry_run
from edge.export.options import ExportOptions
from tests.export.test_dry_run import PRESETS, SMALL

PRESETS.register("small", SMALL)
for given in json.loads(sys.argv[1]):
    print(json.dumps(dry_run("random:small", ExportOptions(**given, context=512))))
"""


SMALL = replace(preset("smollm2-135m"), num_hidden_layers=2, vocab_size=512, eos_token_ids=(2, 510))


def test_a_dry_run_needs_no_library_of_a_target(monkeypatch: pytest.MonkeyPatch):
    """It says what it says with them, but for an estimate of the size of ONNX's graph."""
    options = [{"target": name.partition("-")[0], **given} for name, (_, given) in TARGETS.items()]
    command = [sys.executable, "-c", WITHOUT, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    monkeypatch.setitem(PRESETS._found, "small", SMALL)
    assert done.returncode == 0, done.stderr
    for given, line in zip(options, done.stdout.splitlines(), strict=True):
        if not all(importlib.util.find_spec(module) for module in ("torch", "onnx", "coremltools")):
            continue
        without, wanted = (
            json.loads(line),
            dry_run("random:small", ExportOptions(**given, context=512)),
        )
        wanted = json.loads(json.dumps(wanted))
        if given["target"] == "onnx":
            estimate, exact = without["files"].pop("model.onnx"), wanted["files"].pop("model.onnx")
            assert estimate == pytest.approx(exact, rel=0.1)
            assert without["notes"].pop(0).startswith("The package onnx is not installed")
            total = without.pop("bytes", 0) - wanted.pop("bytes", 0)
            assert total in (0, estimate - exact)
        assert without == wanted, given


def test_a_planned_bundle_is_the_written_one_without_weights(tmp_path: Path):
    checkpoint = make_checkpoint(minicpm_config())
    planned = plan_bundle(checkpoint)
    convert(checkpoint, tmp_path / "bundle")
    written = Bundle.open(tmp_path / "bundle")
    assert planned.tensors == written.tensors and planned.manifest.operators == written.manifest.operators
    for name, entry in written.manifest.files.items():
        assert planned.manifest.files[name].bytes == entry.bytes, name
    for name in written.tensors:
        assert planned.offset(name) == written.offset(name)
    assert planned.tokenizer_files == written.tokenizer_files
    assert planned.chat_template == written.chat_template
    assert planned.generation_config == written.generation_config
    with pytest.raises(UnreadWeightsError, match="not converted yet"):
        Source(planned).floats("model.norm.weight")


def test_types_that_depend_on_weights_ask_for_them(tmp_path: Path):
    """Whether TQ2_0 is exact depends on the scales of ternary weights."""
    planned = Source(plan_bundle(make_checkpoint(minicpm_config(), QuantScheme("ternary", 128))))
    with pytest.raises(UnreadWeightsError):
        plan_export(planned, ExportOptions("gguf"))
