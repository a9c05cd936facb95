"""Core ML: a stateful ML Program for iOS 18 and macOS 15. Nothing predicts off an Apple system."""

from __future__ import annotations

import contextlib
import io
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edge.artifact import Artifact, RuntimeRange
from edge.errors import ExportError
from export.check import CheckResult, Reference, compare_logits
from export.options import ExportOptions
from export.plan import Plan
from export.source import Source
from export.targets import Progress, Written, need
from export.targets.coreml_program import MAX_TOKENS, build_program
from export.targets.coreml_weights import shared_bytes, stored_bytes, type_name
from export.targets.mil_numpy import MilProgram

PACKAGE = "model.mlpackage"
RUNTIME = RuntimeRange("coreml", "18.0")  # iOS 18 has states, int4 blocks and 2-bit tables
_SPEC_VERSION = 9
_LIMIT = 1e-3  # nats; weights and rotary tables are float16, the check's arithmetic is float32
_OPERATOR_BYTES = {"f32": 0, "f16": 0, "ternary": 430}  # of a tensor's constexpr, in model.mlmodel
_LARGEST_CONTEXT = 1 << 16
_REMARK = (
    "The saved program was evaluated operator by operator in NumPy: prediction by Core ML itself needs macOS "
    "or iOS and was not run."
)


class CoreMLTarget:
    """One .mlpackage, for MLModel with MLState."""

    name = "coreml"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Codes and scales of every tensor, rotary tables, and the operators."""
        config, context = source.config, source.context(options)
        source.sparse(options, obstacle="the Core ML program has dense attention only")
        if context > _LARGEST_CONTEXT:
            raise ExportError(
                f"A Core ML program holds its whole KV cache from the start, so {context} tokens of context "
                "are too many for a phone; choose a shorter one with `--context`."
            )
        for info in source.tensors.values():
            type_name(info)
        infos = source.tensors.values()
        weights = sum(map(stored_bytes, infos)) + shared_bytes(infos)
        tables = 2 * context * config.head_dim + 4 * context
        operators = 11_050 + 15_150 * config.num_hidden_layers + 1000 * (not config.tie_word_embeddings)
        operators += sum(_OPERATOR_BYTES.get(info.scheme.kind, 105) for info in infos)
        cache = context * config.kv_bytes_per_token("float16")
        codes = sum(info.rows * info.columns for info in source.tensors.values())
        return Plan(
            files={
                f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin": weights + tables,
                f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel": operators,
                f"{PACKAGE}/Manifest.json": 617,
            },
            formula="codes and a float16 scale per block of every matrix, float32 norms, float16 cos and sin "
            "[context, head_dim / 2], an int32 index per position, zero biases, and about 16 kB of operators "
            "per layer",
            export_memory=3 * codes + (256 << 20),
            run_memory={"weights": weights, "KV cache": cache, "workspace": 64 << 20},
            operators={"coreml.mlprogram": _SPEC_VERSION},
            runtime=RUNTIME,
            flavour="standard",
            attention="dense",
            notes=("Prediction needs iOS 18 or macOS 15; it was not run.",),
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Build the program in memory and save it."""
        ct = _coremltools()
        program = build_program(source, source.context(options))
        tokens = ct.TensorType("tokens", shape=(1, ct.RangeDim(1, MAX_TOKENS, default=1)), dtype=np.int32)
        position = ct.TensorType("position", shape=(1,), dtype=np.int32)
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of the converter's passes
            model = ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[tokens, position],
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision.FLOAT32,  # types are as they were built
                skip_model_load=True,
            )
        model.short_description = f"{source.name}, decoder with KV cache as states"
        model.save(str(folder / PACKAGE))
        return Written(PACKAGE, {name: type_name(info) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Evaluate the saved program: a prefill, then token by token on its states."""
        _coremltools()
        program = MilProgram(artifact.model)
        rows, at = [], 0
        for given in (reference.prompt, *([token] for token in reference.answer)):
            rows.append(program.predict(np.array(given), at))
            at += len(given)
        version = f"(program read by coremltools {metadata.version('coremltools')})"
        return compare_logits(
            reference, np.stack(rows), runtime="numpy", version=version, limit=_LIMIT, remarks=(_REMARK,)
        )


def _coremltools() -> Any:
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of the libraries that only macOS has
    return need("coremltools", "Exporting to Core ML")


TARGET = CoreMLTarget()
