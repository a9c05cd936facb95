"""The target executorch: plans, writes and checks a .pte that ExecuTorch's phone runner loads.

Two flavours: `portable` (`edge.export.targets.executorch.portable`) runs in unmodified apps on XNNPACK;
`full` (`edge.export.targets.executorch.full`) needs the library of our operators and runs as the native
decoder does.
"""

from __future__ import annotations

from pathlib import Path

from edge.config import ModelConfig, SparseConfig
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.executors.adapters import executorch_version
from edge.executors.executorch.executor import RUNTIME as RUNTIME_NAME
from edge.executors.native.operators import EXPORTED_KV
from edge.executors.native.shapes import layer_cache, sparse_obstacle
from edge.executors.opening import open_executor
from edge.export.check import CheckResult, Reference, compare_logits, run_executor
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.export.targets import Progress, Written, need
from edge.export.targets.executorch.codes import fits_four_bits, has_offsets, keeps_codes
from edge.export.targets.executorch.tokenizer import runner_tokenizer
from edge.export.targets.tokenizer_json import TOKENIZER
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import RuntimeRange

MODEL = "model.pte"
RUNTIME = RuntimeRange(RUNTIME_NAME, "1.5.1", "2")
MAX_TOKENS = 256
"""Most tokens of one `forward` call."""

_GRAPH, _LAYER = {"full": 13_000, "portable": 16_600}, {"full": 11_000, "portable": 14_900}  # bytes
_LAYER_PARTS = {  # bytes of graph beside those, by what a layer may have
    "self_attn.q_proj.bias": {"full": 1_700, "portable": 350},
    "self_attn.q_norm.weight": {"full": 5_100, "portable": 2_100},
}
_FORMULA = {
    "full": "the bundle's packed tensors, padded to 64 bytes; {graph} + {layer} bytes of graph per layer",
    "portable": "per matrix rows x columns x bits / 8, 2 bytes (int8: 4) per scale and, for int4, 1 per "
    "group's offset and 4 per row; the embedding once more as 1 byte per weight and 4 per scale (and "
    "minimum); 4 per norm weight; rotary tables of 4 x context x head_dim bytes; "
    "{graph} + {layer} bytes of graph per layer",
}
# Nats. Inputs of matrices are rounded to int8, which the reference does not do; per token if portable.
_LIMIT = {"full": 0.1, "portable": 0.5}
_OPERATORS = {
    "full": (
        *("edge::embedding", "edge::kv_append", "edge::kv_keep", "edge::linear", "edge::paged_attention"),
        *("edge::rms_norm", "edge::rms_norm_linear", "edge::rms_norm_swiglu", "edge::rope_table"),
    ),
    "portable": ("XnnpackBackend",),
}
_OBSTACLE = "ExecuTorch's own operators have no block-sparse attention"


class ExecuTorchTarget:
    """See the head of this file."""

    name = "executorch"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Sizes by the formula of the flavour."""
        source.check_parts("The ExecuTorch target")
        flavour, sparse, context = _flavour(options), _sparse(source, options), source.context(options)
        tokenizer = runner_tokenizer(source)
        size = _model_bytes(source, context, flavour)
        graph = {"graph": _GRAPH[flavour], "layer": _layer_bytes(source, flavour)}
        return Plan(
            files={MODEL: size, **({TOKENIZER: len(tokenizer)} if tokenizer else {})},
            formula=_FORMULA[flavour].format(**graph),
            export_memory=(4 if flavour == "full" else 8) * size + (1 << 30),
            run_memory={
                "weights": size,
                **({"XNNPACK's copy of the matrices": _packed_bytes(source)} if options.portable else {}),
                "KV cache": _cache_bytes(source.config, context, flavour, sparse),
            },
            operators=dict.fromkeys(_OPERATORS[flavour], 1),
            runtime=RUNTIME,
            flavour=flavour,
            attention="dense" if sparse is None else "sparse",
            kv_type=EXPORTED_KV if flavour == "full" else "float32",
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """`model.pte`, and a `tokenizer.json` where the source has none."""
        need("executorch.exir", "Exporting to ExecuTorch")
        if options.portable:
            need("torchao", "The portable flavour")  # ExecuTorch's XNNPACK modules import it
        tokenizer = runner_tokenizer(source)
        if tokenizer is not None:
            (folder / TOKENIZER).write_bytes(tokenizer)
        context = source.context(options)
        if progress is not None:
            progress(0, 1, MODEL)
        if options.portable:
            return Written(MODEL, _write_portable(source, context, folder / MODEL))
        return Written(MODEL, _write_full(source, context, _sparse(source, options), folder / MODEL))

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run it on the installed ExecuTorch, by the C++ runner."""
        return compare_logits(
            reference,
            run_executor(open_executor(artifact), reference),
            runtime=RUNTIME.name,
            version=executorch_version(),
            limit=_LIMIT[artifact.manifest.flavour],
        )


def _flavour(options: ExportOptions) -> str:
    return "portable" if options.portable else "full"


def _sparse(source: Source, options: ExportOptions) -> SparseConfig | None:
    if options.portable:
        return source.sparse(options, obstacle=_OBSTACLE)
    return source.sparse(options, obstacle=sparse_obstacle(source.config))


def _write_full(source: Source, context: int, sparse: SparseConfig | None, out: Path) -> dict[str, str]:
    from edge.export.targets.executorch.full import FullNetwork, entries
    from edge.export.targets.executorch.lowering import lower, metadata

    tokens = min(MAX_TOKENS, context)
    lower(
        entries(FullNetwork(source, context, sparse), tokens), metadata(source.config, context, tokens), out
    )
    return {name: str(info.scheme) for name, info in source.tensors.items()}


def _write_portable(source: Source, context: int, out: Path) -> dict[str, str]:
    from edge.export.targets.executorch.lowering import lower, metadata
    from edge.export.targets.executorch.portable import PortableNetwork, entry

    tokens = min(MAX_TOKENS, context)
    network = PortableNetwork(source.config, source.tensor, context, tokens)
    lower(
        {"forward": entry(network, tokens)},
        metadata(source.config, context, tokens),
        out,
    )
    return {
        name: str(info.scheme)
        if len(info.shape) == 1 or keeps_codes(info.scheme, info.columns)
        else "int8-row"
        for name, info in source.tensors.items()
    }


def _layer_bytes(source: Source, flavour: str) -> int:
    """Graph of a layer."""
    parts = (sizes[flavour] for name, sizes in _LAYER_PARTS.items() if source.layers_with(name))
    return _LAYER[flavour] + sum(parts)


def _model_bytes(source: Source, context: int, flavour: str) -> int:
    graph = _GRAPH[flavour] + _layer_bytes(source, flavour) * source.config.num_hidden_layers
    if flavour == "full":
        return graph + sum(-(-info.bytes // 64) * 64 for info in source.tensors.values())
    tables = 4 * context * source.config.head_dim
    return graph + tables + _packed_bytes(source) + _embedding_bytes(source)


def _packed_bytes(source: Source) -> int:
    """Everything that XNNPACK programs hold."""
    names = {name for name in expected_tensors(source.config) if name != EMBEDDING}
    names.add(EMBEDDING if source.config.tie_word_embeddings else HEAD)
    return sum(_portable_bytes(source, name) for name in names)


def _portable_bytes(source: Source, name: str) -> int:
    info = source.tensors[name]
    if len(info.shape) == 1:
        config = source.config  # a norm of heads is repeated for each of them
        heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
        return 4 * info.columns * heads.get(name.split(".")[-2], 1)
    if not keeps_codes(info.scheme, info.columns):
        return info.rows * info.columns + 4 * info.rows
    groups = info.scheme.groups(info.columns)
    if not fits_four_bits(info.scheme):
        return info.rows * (info.columns + 4)
    offsets = groups + 4 if has_offsets(info.scheme) else 0
    return info.rows * (info.columns // 2 + 2 * groups + offsets)


def _embedding_bytes(source: Source) -> int:
    info = source.tensors[EMBEDDING]
    groups = info.scheme.groups(info.columns) or 1
    padded = groups * (info.scheme.group or info.columns)
    return info.rows * (padded + 4 * groups * (2 if info.scheme.minimum else 1))


def _cache_bytes(config: ModelConfig, context: int, flavour: str, sparse: SparseConfig | None) -> int:
    if flavour == "portable":
        return context * config.kv_bytes_per_token("float32")
    return config.num_hidden_layers * layer_cache(config, context, sparse).size()


TARGET = ExecuTorchTarget()
