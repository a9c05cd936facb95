"""Makes a complete folder of what a target writes; it appears under its name whole and checked, or not.

The steps: plan, room on the disk, the target's own files in a hidden folder beside `out`, then tokenizer,
template, settings, reference and manifest; checksums; fsync; rename. The format is `edge.formats.artifact`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.checkpoints.base import FLOAT_TYPES
from edge.config.generation import read_generation_config
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import ExportError, TokenizerError
from edge.export.check import (
    POSITIONS,
    CheckResult,
    Reference,
    make_reference,
    read_reference,
    with_reach,
)
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source, open_source, plan_source, quantizing_memory
from edge.export.targets import Progress, Written, get_target
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import ARTIFACT, REFERENCE, ArtifactManifest, Quantization
from edge.formats.atomic import Partial, sync_folder, write_failure
from edge.formats.bundle.manifest import CHAT_TEMPLATE, GENERATION_CONFIG, FileEntry
from edge.formats.bundle.planned import UnreadWeightsError
from edge.formats.bundle.writer import created_by
from edge.formats.hashing import file_sha256
from edge.formats.safetensors import SafetensorsWriter
from edge.quant.scheme import SOURCE
from edge.system.notices import notice
from edge.system.units import format_bytes

QUANTIZATION = "quantization.json"
"""The report of a calibrated or ternary quantization, where there was one."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def plan_export(source: Source, options: ExportOptions) -> Plan:
    """What the export would write and need; raises what the export itself would raise for bad input."""
    check_tokenizer(source)
    for sentence in read_generation_config(source.bundle.generation_config).notes:
        notice(sentence)
    return get_target(options.target).plan(source, options)


def dry_run(
    model: str,
    options: ExportOptions,
    progress: Progress | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> dict[str, object]:
    """The plan of an export as one JSON document; raises what the export would raise for bad input.

    The model is converted only where the plan depends on its weights: for exact ternary types.
    """
    hub: dict[str, Any] = {"revision": revision, "offline": offline}
    source = plan_source(model, options, progress, **hub).as_asked(options)
    try:
        plan = plan_export(source, options)
    except UnreadWeightsError:
        source = open_source(model, options, progress, **hub).as_asked(options)
        plan = plan_export(source, options)
    memory = max(plan.export_memory, quantizing_memory(source, options))
    return {
        "target": options.target,
        "source": source.name,
        "context": source.context(options),
        "small_files": small_files_bytes(source),
        **replace(plan, export_memory=memory).to_json(),
    }


def small_files_bytes(source: Source) -> int:
    """Size of what every artifact has beside the target's files, without its manifest."""
    logits = 4 * POSITIONS * source.config.vocab_size
    return sum(len(data) for data in _small_files(source).values()) + logits


def export_model(
    source: Source, options: ExportOptions, out: str | Path, progress: Progress | None = None
) -> Artifact:
    """Write the artifact `out`, a folder that must not exist, and open it with its checksums verified.

    Leftovers of an export to the same `out` that was killed are removed. Raises ExportError with one sentence
    for what the target can't do, a full disk or a folder that can't be written.
    """
    out = Path(out)
    refuse_existing(out)
    source = source.as_asked(options)
    plan = plan_export(source, options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with Partial(out, folder=True) as partial:
            folder = partial.path
            _check_room(out, plan.bytes + small_files_bytes(source))
            written = get_target(options.target).write(source, options, folder, progress)
            context = source.context(options)
            _write_small_files(source, make_reference(source, context, plan.attention), folder)
            manifest = _manifest(source, options, plan, written, folder)
            _write(folder / ARTIFACT, json.dumps(manifest.to_json(), indent=1, ensure_ascii=False).encode())
            _sync(folder)
            Artifact.open(folder)  # what was written is what the manifest says
            partial.keep()
    except OSError as error:
        raise ExportError(write_failure(out, error)) from error
    return Artifact.open(out, verify=False)


def refuse_existing(out: Path) -> None:
    """Raise ExportError if there is something at `out`."""
    if out.exists():
        raise ExportError(f"'{out}' exists already; remove it or choose another folder.")


def check_artifact(path: str | Path) -> CheckResult:
    """Verify every checksum of the folder and run its reference in the target's own runtime."""
    artifact = Artifact.open(path)
    reference = read_reference(artifact)
    result = get_target(artifact.manifest.target).check(artifact, reference)
    return (
        with_reach(result, reference, artifact.config) if artifact.manifest.attention == "sparse" else result
    )


def check_tokenizer(source: Source) -> None:
    """Raise ExportError when the tokenizer is missing or contradicts the vocabulary, or no token can end an
    answer.
    """
    try:
        ends = source.config.eos_token_ids
    except TokenizerError as error:
        raise ExportError(f"The model can't be exported with this tokenizer: {error}") from None
    if not ends:
        raise ExportError(
            "None of the model's files names a token that ends an answer; name one with `--eos`."
        )


def _manifest(
    source: Source, options: ExportOptions, plan: Plan, written: Written, folder: Path
) -> ArtifactManifest:
    names = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return ArtifactManifest(
        target=options.target,
        flavour=plan.flavour,
        model=written.model,
        runtime=plan.runtime,
        operators=plan.operators,
        source=source.name,
        source_sha256=source.sha256,
        config=source.config,
        quantization=_quantization(source, options, written),
        context=source.context(options),
        attention=plan.attention,
        kv_type=plan.kv_type,
        tokenizer=next(name for name in _TOKENIZERS if name in source.tokenizer_files),
        chat_template=CHAT_TEMPLATE if CHAT_TEMPLATE in names else None,
        generation_config=GENERATION_CONFIG if GENERATION_CONFIG in names else None,
        files={name: FileEntry(path.stat().st_size, file_sha256(path)) for name, path in names.items()},
        created_by=created_by(),
    )


def _quantization(source: Source, options: ExportOptions, written: Written) -> Quantization:
    """Without a name, layers that came as floats may have been rounded all the same."""
    rounded = {
        str(info.scheme)
        for info in source.tensors.values()
        if info.name not in (EMBEDDING, HEAD) and not info.exact and not info.scheme.is_float
        if info.source_type in FLOAT_TYPES
    }
    name = options.quantize or next(iter(sorted(rounded)), SOURCE)
    method = options.method if options.quantize or rounded else SOURCE
    return Quantization(name, method, options.smooth, written.tensors)


def _small_files(source: Source) -> dict[str, bytes]:
    files = dict(source.tokenizer_files)
    if source.chat_template is not None:
        files[CHAT_TEMPLATE] = source.chat_template.encode()
    if source.generation_config:
        files[GENERATION_CONFIG] = json.dumps(source.generation_config, indent=1).encode()
    if source.report is not None:
        files[QUANTIZATION] = source.report
    return files


def _write_small_files(source: Source, reference: Reference, folder: Path) -> None:
    for name, data in _small_files(source).items():
        if not (folder / name).exists():  # a target may have its own form of one
            _write(folder / name, data)
    arrays = {"tokens": ("I32", reference.tokens), "logits": ("F32", reference.logits)}
    specs = [(name, kind, array.shape) for name, (kind, array) in arrays.items()]
    with SafetensorsWriter(folder / REFERENCE, specs, {"format": "minicpm-edge"}) as writer:
        for name, (_, array) in arrays.items():
            writer.write(name, array.reshape(-1).view("u1"))


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)


def _sync(folder: Path) -> None:
    """fsync every file and folder: after the rename the whole artifact survives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ExportError(
            f"'{out}' needs {format_bytes(needed)}, but only {format_bytes(free)} are free there; free some "
            "space or choose another folder."
        )
