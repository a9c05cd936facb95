"""Exports a model to ExecuTorch and runs it in the stock runner that its Android and iOS libraries have.

python executorch_run.py [MODEL [FOLDER [portable | full]]]

The portable flavour runs in the unmodified runner; for the full one our operators are loaded into it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import jinja2.sandbox
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner


def export(model: str, folder: Path, portable: bool) -> None:
    from edge.export.artifact import export_model
    from edge.export.options import ExportOptions
    from edge.export.source import open_source

    options = ExportOptions("executorch", portable=portable, context=512)
    export_model(open_source(model, options), options, folder)


def load_our_operators() -> None:
    """They register themselves with the runtime of the installed package; compiled at first use."""
    from edge.executors.adapters import executorch_library

    ctypes.CDLL(str(executorch_library()))


def render(folder: Path, question: str) -> str:
    """The question as the model's own chat template writes it, with the beginning of an answer."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    variables: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "add_generation_prompt": True,
    }
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)  # a text, or an object around it
        variables[name] = token["content"] if isinstance(token, dict) else token or ""
    # Templates come with downloaded models: they get a sandbox.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    text = environment.from_string(template).render(variables)
    # As text: the runner's own num_bos does nothing where tokenizer.json has no post-processor.
    if settings.get("add_bos_token") and not text.startswith(variables["bos_token"]):
        text = variables["bos_token"] + text
    return text


def main(model: str = "smollm2-135m", out: str = "smol-executorch", flavour: str = "portable") -> None:
    folder = Path(out)
    if not folder.exists():
        export(model, folder, portable=flavour == "portable")
    elif (there := json.loads((folder / "artifact.json").read_text(encoding="utf-8")))["flavour"] != flavour:
        raise SystemExit(f"Error: {folder} holds the flavour {there['flavour']}; name another folder.")
    if flavour == "full":
        load_our_operators()
    runner = TextLLMRunner(str(folder / "model.pte"), str(folder / "tokenizer.json"))
    settings = GenerationConfig(echo=False, max_new_tokens=60, temperature=0.0)
    # It prints the text while it is made (single bytes only of ASCII), and then its figures. A token_callback
    # gets the pieces, and fails at one that is a part of a character.
    runner.generate(render(folder, "Why is the sky blue?"), settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
