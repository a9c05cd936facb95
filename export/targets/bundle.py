"""The bundle: what `edge` itself runs, with the manifest of an artifact beside its own.

`decoder.json` has what a program without Python needs beside the bundle's manifest, resolved for the context
of the export: rotary frequencies, the constants of sparse attention, end tokens. `edge_generate` reads it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from edge import __version__
from edge.config.rope import rope_parameters
from edge.executors.memory import memory_plan
from edge.executors.native.shapes import sparse_obstacle
from edge.export.check import (
    CheckResult,
    Reference,
    compare_logits,
    exact_executor,
    run_executor,
)
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.export.targets import Progress, Written
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import RuntimeRange
from edge.formats.bundle.manifest import MANIFEST, WEIGHTS
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.formats.draft.manifest import FOLDER
from edge.hub.drafts import bundled_draft

RUNTIME = RuntimeRange("minicpm-edge", "0.1.0")
DECODER = "decoder.json"
_LIMIT = 1e-6  # the same arithmetic on the same weights; another CPU sums in another order


class BundleTarget:
    """Copies the source's bundle: its files byte for byte, under a manifest that names all end tokens and may
    name other constants.
    """

    name = "bundle"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Sizes are those of the bundle's files, exactly."""
        source.check_parts("A bundle for devices")
        sparse = source.sparse(options, obstacle=sparse_obstacle(source.config))
        memory = memory_plan(source.bundle, source.context(options), sparse=sparse)
        manifest = source.bundle.manifest
        draft = {} if source.draft is None else {f"{FOLDER}/{WEIGHTS}": source.draft.weights_bytes}
        return Plan(
            files={
                WEIGHTS: manifest.files[WEIGHTS].bytes,
                MANIFEST: len(_manifest(source)),
                DECODER: len(_decoder(source, options)),
                **draft,
            },
            formula="the bundle's own files: codes and scales of every tensor, padded to 64 bytes, exactly",
            export_memory=64 << 20,
            run_memory={
                "weights": memory.weights,
                "KV cache": memory.kv_cache,
                "workspace": memory.workspace,
                **({} if source.draft is None else {"draft": source.draft.weights_bytes}),
            },
            operators=dict.fromkeys(manifest.operators, 1),
            runtime=RUNTIME,
            flavour="full",
            attention="dense" if sparse is None else "sparse",
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Copy every file that the bundle's manifest names, and write the manifest."""
        sizes = {name: entry.bytes for name, entry in source.bundle.manifest.files.items()}
        done = 0
        for name, size in sizes.items():
            if progress is not None:
                progress(done, sum(sizes.values()), name)
            shutil.copyfile(source.bundle.path / name, folder / name)
            done += size
        if isinstance(source.draft, DraftFiles):
            (folder / FOLDER).mkdir()
            for name in (WEIGHTS, MANIFEST):
                shutil.copyfile(source.draft.path / name, folder / FOLDER / name)
        (folder / MANIFEST).write_bytes(_manifest(source))
        (folder / DECODER).write_bytes(_decoder(source, options))
        return Written(WEIGHTS, {name: str(info.scheme) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run it on the native executor, in exact arithmetic; a draft beside it must be its own."""
        version = __version__
        artifact.manifest.runtime.check(version)
        manifest = artifact.manifest
        bundle = Bundle.open(artifact.path)
        bundled_draft(bundle, verify=True)
        executor = exact_executor(bundle, manifest.context, manifest.attention)
        logits = run_executor(executor, reference)
        return compare_logits(reference, logits, runtime=RUNTIME.name, version=version, limit=_LIMIT)


def _manifest(source: Source) -> bytes:
    """`manifest.json`"""
    return replace(source.bundle.manifest, config=source.config).encode()


def _decoder(source: Source, options: ExportOptions) -> bytes:
    """`decoder.json`"""
    config, context = source.config, source.context(options)
    frequencies, scale = rope_parameters(
        config.rope, config.head_dim, context, config.max_position_embeddings
    )
    sparse = source.sparse(options, obstacle=sparse_obstacle(config))
    document = {
        "format": "minicpm-edge-decoder",
        "version": 1,
        "context": context,
        "rope": {"inverse_frequency": frequencies.tolist(), "scale": float(scale)},
        "sparse": None if sparse is None else asdict(sparse),
        "begin_token": config.bos_token_id,
        "end_tokens": list(config.eos_token_ids),
    }
    return json.dumps(document, indent=1).encode()


TARGET = BundleTarget()
