"""Runs an exported GGUF file: in llama.cpp, or with edge's own reader where that does not run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from edge import __version__
from edge.checkpoints.gguf import GGUFCheckpoint
from edge.errors import ArtifactError
from edge.export.check import (
    CheckResult,
    Reference,
    compare_logits,
    exact_executor,
    run_executor,
)
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert

_LIMIT = 0.1  # nats; llama.cpp rounds activations to 8 bits
_EXACT_LIMIT = 1e-6
# Without the current folder on the path: a user's own export.py must not be taken for ours.
_PROGRAM = (
    "import sys; sys.path.pop(0); from edge.export.targets.gguf.llama_cpp import main; main(*sys.argv[1:])"
)


@dataclass(frozen=True)
class LlamaCppRun:
    """logits: float32 [1 + answers, vocab_size]. tokens: int [greedy], chosen after the answer."""

    logits: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    version: str


def check_gguf(artifact: Artifact, reference: Reference) -> CheckResult:
    """Compare llama.cpp's logits with the reference; edge's own, with a remark, where it does not run."""
    if importlib.util.find_spec("llama_cpp") is None:
        reason = "llama.cpp's bindings are not installed (`pip install llama-cpp-python`)"
        return _check_with_edge(artifact, reference, reason)
    try:
        run = run_llama_cpp(
            artifact.model, reference.prompt, reference.answer, context=_llama_cpp_context(artifact)
        )
    except ArtifactError as error:
        return _check_with_edge(artifact, reference, str(error).rstrip("."))
    artifact.manifest.runtime.check(run.version)
    return compare_logits(
        reference, run.logits, runtime="llama-cpp-python", version=run.version, limit=_LIMIT
    )


def run_llama_cpp(
    model: Path, prompt: Sequence[int], answer: Sequence[int] = (), *, greedy: int = 0, context: int = 256
) -> LlamaCppRun:
    """Run tokens in llama.cpp, in another process; ArtifactError if that fails or the library crashes."""
    job = {
        "model": str(model),
        "context": context,
        "prompt": list(prompt),
        "answer": list(answer),
        "greedy": greedy,
    }
    with TemporaryDirectory() as folder:
        out = Path(folder) / "result.npz"
        command = [sys.executable, "-c", _PROGRAM, json.dumps(job), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode < 0:
            raise ArtifactError(
                f"llama.cpp crashed (signal {-done.returncode}); its library was probably built for another "
                "processor, so build it again with `pip install --force-reinstall --no-cache-dir "
                "llama-cpp-python`."
            )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ArtifactError(f"llama.cpp could not run '{model}' ({last}).")
        with np.load(out) as found:
            return LlamaCppRun(found["logits"], found["tokens"], str(found["version"]))


def _llama_cpp_context(artifact: Artifact) -> int:
    """Which of LongRoPE's factor lists llama.cpp takes depends on the context that it is opened with."""
    original = artifact.config.rope.original_max_position_embeddings
    if artifact.config.rope.type != "longrope" or original is None or artifact.manifest.context <= original:
        return 256
    return original + 256


def _check_with_edge(artifact: Artifact, reference: Reference, reason: str) -> CheckResult:
    with TemporaryDirectory() as folder:
        convert(GGUFCheckpoint(artifact.model), Path(folder) / "bundle")
        executor = exact_executor(Bundle.open(Path(folder) / "bundle"), artifact.manifest.context)
        logits = run_executor(executor, reference)
    return compare_logits(
        reference,
        logits,
        runtime="edge",
        version=__version__,
        limit=_EXACT_LIMIT,
        remarks=(f"The file was read by edge itself: {reason}.",),
    )
