"""Exports a model to ExecuTorch and runs it in ExecuTorch's stock runner, the one behind its Android and iOS libraries.

python executorch_run.py [MODEL [FOLDER [portable | full]]]

The portable flavour runs in the unmodified runner. The full one needs our operators, which the example loads into it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

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


def render(folder: Path, question: str) -> tuple[str, int]:
    """The question as the model's own chat template writes it, and how many BOS tokens the runner puts in front."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    variables = {"messages": [{"role": "user", "content": question}], "add_generation_prompt": True}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)  # a text, or an object around it
        variables[name] = token["content"] if isinstance(token, dict) else token or ""
    # Templates come with downloaded models: they get a sandbox.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((folder / "chat_template.jinja").read_text()).render(variables)
    return text, int(bool(settings.get("add_bos_token")) and not text.startswith(variables["bos_token"]))


def main(model: str = "smollm2-135m", out: str = "smol-executorch", flavour: str = "portable") -> None:
    folder = Path(out)
    if not folder.exists():
        export(model, folder, portable=flavour == "portable")
    if flavour == "full":
        load_our_operators()
    runner = TextLLMRunner(str(folder / "model.pte"), str(folder / "tokenizer.json"))
    prompt, num_bos = render(folder, "Why is the sky blue?")
    settings = GenerationConfig(echo=False, max_new_tokens=60, temperature=0.0, num_bos=num_bos)
    # It prints the text while it is made, then its own figures. An app passes a token_callback that shows each piece.
    runner.generate(prompt, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
