"""The target onnx: plans, writes and checks an artifact for ONNX Runtime.

The flavour `portable` (`edge.export.targets.onnx.portable`) needs no library beside ONNX Runtime. The flavour
`full` (`edge.export.targets.onnx.full`) needs our operators, and computes what the native executor computes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edge.config import KVType, SparseConfig
from edge.config.tensors import EMBEDDING
from edge.errors import ExportError
from edge.executors.native.operators import EXPORTED_KV
from edge.executors.native.shapes import sparse_obstacle
from edge.executors.onnx.executor import runtime_version
from edge.executors.opening import open_executor
from edge.export.check import CheckResult, Reference, compare_logits, run_executor
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.export.targets import Progress, Written
from edge.export.targets.onnx.full import DOMAIN, FullDecoder
from edge.export.targets.onnx.genai import GENAI_CONFIG, genai_config
from edge.export.targets.onnx.graph import DATA_FILE, MODEL_FILE, GraphBuilder, GraphSketch
from edge.export.targets.onnx.portable import PortableDecoder
from edge.export.targets.onnx.weights import BlockLayout
from edge.export.targets.tokenizer_json import TOKENIZER, converted_tokenizer
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import RuntimeRange
from edge.formats.bundle.manifest import WEIGHTS

RUNTIME = "onnxruntime"
_OLDEST, _TWO_BIT_EMBEDDING = "1.23", "1.30"  # 1.26 does not know GatherBlockQuantized of 2 bits
_FORMULA = {
    "portable": "per matrix rows x blocks x (block x bits / 8 + 2 bytes of scale + 2 of minimum if it has "
    "them), or 2 bytes per weight of a float matrix; 4 bytes per norm weight; rotary tables of 4 x context x "
    "head_dim bytes; tensors padded to 64 bytes, large ones to 4096; about 8 kB of graph per layer",
    "full": "the bundle's own weights file (codes and scales of every tensor, padded to 64 bytes), exactly, "
    "and about 4 kB of graph per layer",
}
_KV_TYPE: dict[str, KVType] = {"portable": "float32", "full": EXPORTED_KV}
_LIMIT = 0.1  # nats: inputs of matrices are rounded to int8 per block, which the reference does not do
_WORKING_MEMORY = 256 << 20  # of an export: some rows of a matrix, unpacked and packed again


class OnnxTarget:
    """See the head of this file."""

    name = "onnx"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Sizes are exact: the same code that writes, without the bytes of the tensors.

        Without the package onnx the size of the graph is an estimate, which a note says.
        """
        source.check_parts("The ONNX target")
        context, sparse = source.context(options), _sparse(source, options)
        with _graph(options) as graph:
            _write_decoder(graph, source, options)
            files = {MODEL_FILE: graph.save(_metadata(source, context))}
        notes: tuple[str, ...] = ()
        if isinstance(graph, GraphSketch):
            notes = (f"The package onnx is not installed: the size of {MODEL_FILE} is an estimate.",)
        flavour, weights = "full", source.bundle.manifest.files[WEIGHTS].bytes
        if options.portable:
            flavour, weights = "portable", graph.data_bytes
            files[GENAI_CONFIG] = len(genai_config(source.config, context, source.generation_config))
            tokenizer, reason = _portable_tokenizer(source)
            if tokenizer is not None:
                files[TOKENIZER] = len(tokenizer)
            if reason:
                notes += (f"onnxruntime-genai and web pages can't read the tokenizer. {reason}",)
        files[DATA_FILE if options.portable else WEIGHTS] = weights
        return Plan(
            files=files,
            formula=_FORMULA[flavour],
            export_memory=_WORKING_MEMORY,
            run_memory={
                "weights": weights,
                "KV cache": context * source.config.kv_bytes_per_token(_KV_TYPE[flavour]),
            },
            operators=graph.operators,
            runtime=_runtime(source, options),
            flavour=flavour,
            attention="dense" if sparse is None else "sparse",
            kv_type=_KV_TYPE[flavour],
            notes=notes,
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """The graph and its tensors, and for the portable flavour `genai_config.json`."""
        context = source.context(options)
        with _graph(options, folder) as graph:
            _write_decoder(graph, source, options, progress)
            graph.save(_metadata(source, context))
        if options.portable:
            config_file = genai_config(source.config, context, source.generation_config)
            (folder / GENAI_CONFIG).write_bytes(config_file)
            tokenizer, _ = _portable_tokenizer(source)
            if tokenizer is not None:
                (folder / TOKENIZER).write_bytes(tokenizer)
        else:
            shutil.copyfile(source.bundle.weights_file, folder / WEIGHTS)
        return Written(MODEL_FILE, {name: str(info.scheme) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run it on the installed ONNX Runtime."""
        return compare_logits(
            reference,
            run_executor(open_executor(artifact), reference),
            runtime=RUNTIME,
            version=runtime_version(),
            limit=_LIMIT,
        )


def _portable_tokenizer(source: Source) -> tuple[bytes | None, str]:
    """(a `tokenizer.json` to write, why there can be none): our executor does without one, others do not."""
    try:
        return converted_tokenizer(source), ""
    except ExportError as error:
        return None, str(error)


def _graph(options: ExportOptions, folder: Path | None = None) -> GraphBuilder:
    domains = {} if options.portable else {DOMAIN: 1}
    if folder is None:
        try:
            import onnx  # noqa: F401
        except ImportError:
            return GraphSketch(domains)
    return GraphBuilder(folder, domains)


def _write_decoder(
    graph: GraphBuilder, source: Source, options: ExportOptions, progress: Progress | None = None
) -> None:
    context = source.context(options)
    if options.portable:
        PortableDecoder(graph, source.bundle, context, progress).write()
    else:
        FullDecoder(graph, source.bundle, context, _sparse(source, options), progress).write()


def _sparse(source: Source, options: ExportOptions) -> SparseConfig | None:
    """The constants of the artifact's attention, None for dense."""
    if options.portable:
        return source.sparse(options, obstacle="ONNX Runtime's own operators have no block-sparse attention")
    return source.sparse(options, obstacle=sparse_obstacle(source.config))


def _runtime(source: Source, options: ExportOptions) -> RuntimeRange:
    scheme = source.tensors[EMBEDDING].scheme
    narrow = options.portable and not scheme.is_float and BlockLayout.of(scheme).bits == 2
    return RuntimeRange(RUNTIME, _TWO_BIT_EMBEDDING if narrow else _OLDEST)


def _metadata(source: Source, context: int) -> dict[str, str]:
    return {"source": source.name, "source_sha256": source.sha256, "context": str(context)}


TARGET = OnnxTarget()
