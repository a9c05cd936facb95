"""Core ML: a stateful ML Program for iOS 18 and macOS 15. Nothing predicts off an Apple system."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edge.config import ModelConfig, SparseConfig
from edge.errors import ExportError
from edge.executors.native.shapes import sparse_obstacle
from edge.export.check import CheckResult, Reference, compare_logits
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.export.targets import Progress, Written, need
from edge.export.targets.coreml.mil_numpy import MilProgram
from edge.export.targets.coreml.program import MAX_TOKENS, build_program
from edge.export.targets.coreml.sparse import SparseLayout
from edge.export.targets.coreml.weights import code_bits, padded_bytes, shared_bytes, stored_bytes, type_name
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import RuntimeRange
from edge.system.units import format_bytes

PACKAGE = "model.mlpackage"
RUNTIME = RuntimeRange("coreml", "18.0")  # iOS 18 has states, int4 blocks and 2-bit tables
_SPEC_VERSION = 9
_LIMIT = 1e-3  # nats; weights and rotary tables are float16, the check's arithmetic is float32
_OPERATOR_BYTES = {2: 430, 16: 0}  # of a tensor's constexpr in model.mlmodel, by the bits of a code
_BIASES, _HEAD_NORMS, _ROTATION = 580, 3_170, 2_920  # of a layer of one function in model.mlmodel
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
        source.check_parts("The Core ML target")
        config, context, layout = source.config, source.context(options), _layout(source, options)
        if context > _LARGEST_CONTEXT:
            raise ExportError(
                f"A Core ML program holds its whole KV cache from the start, so {context} tokens of context "
                "are too many for a phone; choose a shorter one with `--context`."
            )
        infos = source.tensors.values()
        for info in infos:
            type_name(info)
        weights = sum(map(stored_bytes, infos)) + shared_bytes(infos)
        codes = sum(info.rows * info.columns for info in infos)
        return Plan(
            files={
                f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin": weights
                + _table_bytes(config, context, layout),
                f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel": _program_bytes(source, layout),
                f"{PACKAGE}/Manifest.json": 617,
            },
            formula="codes and a float16 scale per block of every matrix, float32 norms, float16 cos and sin "
            "[context, head_dim / 2], an int32 index per position, zero biases, and about 16 kB of operators "
            "per layer; with sparse attention 76 kB in two functions, and indices of blocks and windows",
            export_memory=3 * codes + (256 << 20),
            run_memory={"weights": weights, **_run_memory(config, context, layout)},
            operators={"coreml.mlprogram": _SPEC_VERSION},
            runtime=RUNTIME,
            flavour="standard",
            attention="dense" if layout is None else "sparse",
            kv_type="float16",
            notes=("Prediction needs iOS 18 or macOS 15; it was not run.", *_sparse_notes(config, layout)),
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Build the program in memory and save it."""
        _coremltools()
        layout = _layout(source, options)
        program = build_program(source, source.context(options), layout)
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of the converter's passes
            if layout is not None:
                program = _share_weights(_convert(program, "milinternal"))
            model = _convert(program, "mlprogram", passes=layout is None)
        model.short_description = f"{source.name}, decoder with KV cache as states"
        model.save(str(folder / PACKAGE))
        return Written(PACKAGE, {name: type_name(info) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Evaluate the saved program: a prefill in pieces, then token by token on its states."""
        _coremltools()
        program = MilProgram(artifact.model)
        prompt, single = np.array(reference.prompt), "decode" if "decode" in program.functions else "main"
        for start in range(0, len(prompt), MAX_TOKENS):
            logits = program.predict(prompt[start : start + MAX_TOKENS], start)
        rows = [logits]
        for at, token in enumerate(reference.answer, len(prompt)):
            rows.append(program.predict(np.array([token]), at, single))
        version = f"(program read by coremltools {metadata.version('coremltools')})"
        return compare_logits(
            reference, np.stack(rows), runtime="numpy", version=version, limit=_LIMIT, remarks=(_REMARK,)
        )


def _layout(source: Source, options: ExportOptions) -> SparseLayout | None:
    """The sizes of sparse attention, or None; what the native decoder refuses could not be checked here."""
    context, obstacle = source.context(options), sparse_obstacle(source.config)
    layout = SparseLayout(source.config.sparse or SparseConfig(), context)
    if not layout.fine:
        obstacle = (
            f"a context of {context} tokens is shorter than a kernel ({layout.sparse.kernel_size} tokens)"
        )
    return layout if source.sparse(options, obstacle) is not None else None


def _table_bytes(config: ModelConfig, context: int, layout: SparseLayout | None) -> int:
    """Rotary tables and indices in weight.bin."""
    rotary = 2 * padded_bytes(context * config.head_dim)
    if layout is None:
        return rotary + padded_bytes(4 * context)
    return rotary + sum(padded_bytes(4 * length) for length in layout.index_lengths)


def _program_bytes(source: Source, layout: SparseLayout | None) -> int:
    """Operators in model.mlmodel; sizes of a layer and of the rest were measured."""
    config = source.config
    tensors = sum(_OPERATOR_BYTES.get(code_bits(info.scheme), 105) for info in source.tensors.values())
    untied = 1000 * (not config.tie_word_embeddings)
    tensors += _BIASES * source.layers_with("self_attn.q_proj.bias")
    tensors += _HEAD_NORMS * source.layers_with("self_attn.q_norm.weight")
    tensors -= _ROTATION * len(config.layers_without_rope)
    if layout is None:
        return 11_050 + 15_150 * config.num_hidden_layers + untied + tensors
    common, layer = 37_200, 73_000
    if not layout.coarse:
        common, layer = common - 7_400, layer - 11_700
    elif layout.early:
        common, layer = common + 400, layer + 2_700
    return common + layer * config.num_hidden_layers + 2 * (untied + tensors)


def _run_memory(config: ModelConfig, context: int, layout: SparseLayout | None) -> dict[str, int]:
    """States and the largest tensors of a prefill of MAX_TOKENS, whose scores reach over the whole cache."""
    rows = context if layout is None else layout.rows
    memory = {"KV cache": rows * config.kv_bytes_per_token("float16")}
    if layout is not None:
        memory["key summaries"] = (layout.fine + layout.coarse) * config.kv_bytes_per_token("float16") // 2
    scores = 2 * config.num_attention_heads * MAX_TOKENS * rows
    return {**memory, "workspace": 2 * scores + (64 << 20)}


def _sparse_notes(config: ModelConfig, layout: SparseLayout | None) -> tuple[str, ...]:
    if layout is None:
        return ()
    row = config.kv_bytes_per_token("float16") // 2  # of keys alone
    read, whole = layout.decode_rows * row, 2 * layout.rows * row
    return (f"A decode step reads {format_bytes(read)} of states, of a KV cache of {format_bytes(whole)}.",)


def _convert(program: Any, target: str, *, passes: bool = True) -> Any:
    """coremltools' conversion of a MIL program, with or without its passes over the operators."""
    ct = _coremltools()
    tokens = ct.TensorType("tokens", shape=(1, ct.RangeDim(1, MAX_TOKENS, default=1)), dtype=np.int32)
    position = ct.TensorType("position", shape=(1,), dtype=np.int32)
    return ct.convert(
        program,
        convert_to=target,
        inputs=[tokens, position],  # of `main`
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,  # types are as they were built
        pass_pipeline=None if passes else ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )


def _share_weights(program: Any) -> Any:
    """Give equal constants of all functions one entry in weight.bin, as `ct.utils.save_multifunction` does.

    By a digest: comparing two arrays as that does takes several times their memory.
    """
    for function in program.functions.values():
        for operation in function.operations:
            value = operation.outputs[0].val if operation.op_type == "const" else None
            if isinstance(value, np.ndarray):
                digest = hashlib.sha256(f"{operation.outputs[0].dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
                operation.weight_id = digest.hexdigest()
    program.export_as_multifunction = True
    return program


def _coremltools() -> Any:
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of the libraries that only macOS has
    return need("coremltools", "Exporting to Core ML")


TARGET = CoreMLTarget()
