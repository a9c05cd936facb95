"""The programs that are compared: where each one's Python is, and how its model is made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .models import Maker, Weights, edge_bundle, genai_folder, gguf_file, openvino_folder


@dataclass(frozen=True)
class Program:
    """A program that is measured.

    name: in tables. option: of the command line, for the Python that has `package` (of pip); without one our
    own Python runs it. worker: what that Python runs, a file beside this one. make: the model in its form.
    """

    name: str
    option: str | None
    package: str
    worker: str
    make: Callable[[Maker, Weights], Path | str]

    @property
    def variable(self) -> str:
        """The environment variable that stands for the option."""
        assert self.option is not None
        return "EDGE_PEER_" + self.option.upper().replace("-", "_")

    def python(self, given: str | None = None) -> str:
        """The Python that runs it: the one given, else that of the variable, else our own."""
        return given or (self.option and os.environ.get(self.variable)) or sys.executable

    def version(self, python: str) -> str | None:
        """The version of its package there; None where it is not installed."""
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        try:
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip() or None

    def missing(self, python: str) -> str:
        """The sentence about a program that is not installed."""
        return (
            f"{self.name} is left out: {python} has no {self.package}; name a Python that has it with "
            f"--{self.option} or ${self.variable} (CONTRIBUTING.md, Peers)."
        )


EDGE = Program("edge", None, "minicpm-edge", "run_edge.py", edge_bundle)
LLAMA = Program("llama.cpp", "llama", "llama-cpp-python", "run_llama.py", gguf_file)
OPENVINO = Program("OpenVINO GenAI", "openvino", "openvino-genai", "run_openvino.py", openvino_folder)
GENAI = Program("onnxruntime-genai", "onnxruntime-genai", "onnxruntime-genai", "run_genai.py", genai_folder)
PEERS = (LLAMA, OPENVINO, GENAI)
