"""The target onnx: plans, writes and checks an artifact for ONNX Runtime.

The flavour `portable` (`export.targets.onnx_portable`) needs no library beside ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge.artifact import Artifact, RuntimeRange
from edge.errors import ExportError
from edge.executors.onnx import OnnxExecutor, runtime_version
from export.check import CheckResult, Reference, compare_logits, run_executor
from export.options import ExportOptions
from export.plan import Plan
from export.source import Source
from export.targets import Progress, Written
from export.targets.onnx_genai import GENAI_CONFIG, genai_config
from export.targets.onnx_graph import DATA_FILE, MODEL_FILE, GraphBuilder
from export.targets.onnx_portable import PortableDecoder

RUNTIME = RuntimeRange("onnxruntime", "1.32")
_FORMULA = (
    "per matrix rows x blocks x (block x bits / 8 + 2 bytes of scale + 2 of minimum if it has them), or 2 "
    "bytes per weight of a float matrix; 4 bytes per norm weight; rotary tables of 4 x context x head_dim bytes; "
    "tensors padded to 64 bytes, large ones to 4096; about 8 kB of graph per layer"
)
_LIMIT = 0.1  # nats: inputs of matrices are rounded to int8 per block, which the reference does not do
_WORKING_MEMORY = 256 << 20  # of an export: some rows of a matrix, unpacked and packed again


class OnnxTarget:
    """See the head of this file."""

    name = "onnx"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Sizes are exact: the same code that writes, without the bytes of the tensors."""
        context, attention = source.context(options), _attention(source, options)
        with GraphBuilder() as graph:
            PortableDecoder(graph, source.bundle, context).write()
            model = graph.save(_metadata(source, context))
        config_file = genai_config(source.config, context, source.generation_config)
        return Plan(
            files={MODEL_FILE: model, DATA_FILE: graph.data_bytes, GENAI_CONFIG: len(config_file)},
            formula=_FORMULA,
            export_memory=_WORKING_MEMORY,
            run_memory={
                "weights": graph.data_bytes,
                "KV cache": context * source.config.kv_bytes_per_token(OnnxExecutor.kv_type),
            },
            operators=graph.operators,
            runtime=RUNTIME,
            flavour="portable",
            attention=attention,
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """The graph, its data file and `genai_config.json`."""
        context = source.context(options)
        with GraphBuilder(folder) as graph:
            PortableDecoder(graph, source.bundle, context, progress).write()
            graph.save(_metadata(source, context))
        config_file = genai_config(source.config, context, source.generation_config)
        (folder / GENAI_CONFIG).write_bytes(config_file)
        return Written(MODEL_FILE, {name: str(info.scheme) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run it on the installed ONNX Runtime."""
        executor = OnnxExecutor(artifact, context=artifact.manifest.context)
        return compare_logits(
            reference,
            run_executor(executor, reference),
            runtime=RUNTIME.name,
            version=runtime_version(),
            limit=_LIMIT,
        )


def _attention(source: Source, options: ExportOptions) -> Literal["dense"]:
    if not options.portable:
        raise ExportError(
            "The full flavour of onnx is not part of this version; add `--portable` for ONNX Runtime's own "
            "operators."
        )
    source.sparse(options, obstacle="ONNX Runtime's own operators have no block-sparse attention")
    return "dense"


def _metadata(source: Source, context: int) -> dict[str, str]:
    return {"source": source.name, "source_sha256": source.sha256, "context": str(context)}


TARGET = OnnxTarget()
