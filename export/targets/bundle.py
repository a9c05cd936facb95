"""The bundle: what `edge` itself runs, with the manifest of an artifact beside its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from edge.artifact import Artifact, RuntimeRange
from edge.bundle.manifest import MANIFEST, WEIGHTS
from edge.bundle.reader import Bundle
from edge.memory import memory_plan
from export.check import CheckResult, Reference, compare_logits, exact_executor, program_version, run_executor
from export.options import ExportOptions
from export.plan import Plan
from export.source import Source
from export.targets import Progress, Written

RUNTIME = RuntimeRange("minicpm-edge", "0.1.0")
_LIMIT = 1e-6  # the same arithmetic on the same weights; another CPU sums in another order


class BundleTarget:
    """Copies the source's bundle, byte for byte."""

    name = "bundle"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Sizes are those of the bundle's files, exactly."""
        sparse = source.sparse(options)
        memory = memory_plan(source.bundle, source.context(options), sparse=sparse)
        return Plan(
            files={name: (source.bundle.path / name).stat().st_size for name in (WEIGHTS, MANIFEST)},
            formula="the bundle's own files: codes and scales of every tensor, padded to 64 bytes, exactly",
            export_memory=64 << 20,
            run_memory={
                "weights": memory.weights,
                "KV cache": memory.kv_cache,
                "workspace": memory.workspace,
            },
            operators=dict.fromkeys(source.bundle.manifest.operators, 1),
            runtime=RUNTIME,
            flavour="full",
            attention="dense" if sparse is None else "sparse",
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Copy every file that the bundle's manifest names, and the manifest."""
        names = [*source.bundle.manifest.files, MANIFEST]
        sizes = {name: (source.bundle.path / name).stat().st_size for name in names}
        done = 0
        for name, size in sizes.items():
            if progress is not None:
                progress(done, sum(sizes.values()), name)
            shutil.copyfile(source.bundle.path / name, folder / name)
            done += size
        return Written(WEIGHTS, {name: str(info.scheme) for name, info in source.tensors.items()})

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run it on the native executor, in exact arithmetic."""
        version = program_version()
        artifact.manifest.runtime.check(version)
        manifest = artifact.manifest
        executor = exact_executor(Bundle.open(artifact.path), manifest.context, manifest.attention)
        logits = run_executor(executor, reference)
        return compare_logits(reference, logits, runtime=RUNTIME.name, version=version, limit=_LIMIT)


TARGET = BundleTarget()
