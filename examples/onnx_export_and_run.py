"""Exports a model to portable ONNX and runs it with ONNX Runtime alone, as a program of your own would.

python onnx_export_and_run.py [MODEL [FOLDER [QUESTION]]]

Only `export` needs this project. Everything else (onnxruntime, numpy, tokenizers, jinja2) runs the folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import jinja2.sandbox
import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def export(model: str, folder: Path) -> None:
    from edge.export.artifact import export_model
    from edge.export.options import ExportOptions
    from edge.export.source import open_source

    options = ExportOptions("onnx", portable=True, context=1024)
    export_model(open_source(model, options), options, folder)


class Decoder:
    """One sequence with its KV cache."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """threads: 0 leaves them to ONNX Runtime."""
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        network = config["decoder"]
        self.context: int = config["context_length"]
        self.end_tokens = set(config["eos_token_id"])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # errors; a warning about the optional input logits_from is of no use
        # Otherwise its threads wait busily between two tokens, which slows down everything else.
        settings.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", settings, providers=["CPUExecutionProvider"]
        )
        # One buffer of `context` rows is past and present at once: rows are written in place, never copied.
        self.binding = self.session.io_binding()
        self.cache = []
        shape = (1, network["num_key_value_heads"], self.context, network["head_size"])
        for layer in range(network["num_hidden_layers"]):
            for part in ("key", "value"):
                rows = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", rows)
                self.binding.bind_ortvalue_output(f"present.{layer}.{part}", rows)
                self.cache.append(rows)  # the binding only borrows it
        logits = np.empty((1, 1, config["vocab_size"]), np.float32)
        self.logits = onnxruntime.OrtValue.ortvalue_from_numpy(logits)
        self.binding.bind_ortvalue_output("logits", self.logits)
        self.length = 0  # rows of the cache in use; a smaller number forgets the others

    def run(self, tokens: list[int]) -> np.ndarray:
        """Appends tokens to the sequence; float32 logits [vocabulary] after the last one."""
        if self.length + len(tokens) > self.context:
            raise ValueError(f"The sequence is longer than the context of {self.context} tokens.")
        self.length += len(tokens)
        # The runtime reads the inputs' own memory, so they are kept until it has run.
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
        }
        for name, values in inputs.items():
            self.binding.bind_cpu_input(name, values)
        self.session.run_with_iobinding(self.binding)
        return self.logits.numpy()[0, -1]

    def greedy(self, prompt: list[int], count: int) -> Iterator[int]:
        """At most `count` tokens after the prompt, each the likeliest; ends at an end token."""
        tokens = prompt
        for _ in range(count):
            token = int(self.run(tokens).argmax())
            if token in self.end_tokens:
                return
            yield token
            tokens = [token]


def encode(folder: Path, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The conversation as the model's own chat template writes it, with the beginning of an answer."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    variables: dict[str, Any] = {"messages": messages, "add_generation_prompt": True}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)  # a text, or an object around it
        variables[name] = token["content"] if isinstance(token, dict) else token or ""
    # Templates come with downloaded models: they get a sandbox.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    text = environment.from_string(template).render(variables)
    if settings.get("add_bos_token") and not text.startswith(variables["bos_token"]):
        text = variables["bos_token"] + text
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def main(model: str = "smollm2-135m", out: str = "smol-onnx", question: str = "Why is the sky blue?") -> None:
    folder = Path(out)
    if not folder.exists():
        export(model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder = Decoder(folder)
    prompt = encode(folder, tokenizer, [{"role": "user", "content": question}])
    start = perf_counter()
    made, times = [], []
    for token in decoder.greedy(prompt, 100):
        made.append(token)
        times.append(perf_counter() - start)
    print(tokenizer.decode(made))
    if len(made) > 1:
        speed = (len(made) - 1) / (times[-1] - times[0])
        print(f"[{len(prompt)} tokens in {times[0]:.2f} s, {len(made)} after them at {speed:.0f} tokens/s]")


if __name__ == "__main__":
    main(*sys.argv[1:])
