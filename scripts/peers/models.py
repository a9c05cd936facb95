"""Makes one model in the form of every program: ours exported, or random weights of the same shape.

Time does not depend on what the weights are, so a peer that starts from a Hugging Face folder gets a Llama of
our shape. Models are kept in a folder, and a half of one never stands under its name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.formats.bundle.reader import Bundle
from edge.hub.resolve import open_bundle


@dataclass(frozen=True)
class Weights:
    """A quantization. label: in tables. quantize, head: as `edge export` takes them. group: columns of a
    scale.
    """

    label: str
    quantize: str
    head: str | None
    group: int


INT4_32 = Weights("int4, group 32", "int4-g32", None, 32)
INT4_128 = Weights("int4, group 128", "int4-g128", None, 128)
TERNARY = Weights("ternary, group 128, int4 head", "ternary-g128", "int4", 128)


@dataclass(frozen=True)
class Maker:
    """Makes models of one name. folder: where they are kept. python: of the program that the model is for."""

    model: str
    folder: Path
    python: str = sys.executable

    def kept(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file or folder of that name, made by `make` where it does not exist yet."""
        path = self.folder / re.sub(r"[^\w.-]", "-", f"{self.model}-{name}")
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            print(f"making {path.name}", file=sys.stderr, flush=True)
            make(partial)
            partial.rename(path)
        return path


def _run(command: list[str]) -> None:
    """Run a converter; what it prints is shown where it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}\nThis failed: {' '.join(command)}")


def edge_bundle(maker: Maker, weights: Weights) -> str:
    """Ours is converted when it is opened."""
    return maker.model


def gguf_file(maker: Maker, weights: Weights) -> Path:
    """Our export: every matrix as Q4_0, or TQ2_0 and a Q4_0 head; the embedding too.

    A scale of TQ2_0 is for 256 columns, so a ternary model of that group stands for ours of 128.
    """
    quantize = "ternary-g256" if weights == TERNARY else weights.quantize

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "edge", "export", maker.model, "--to", "gguf", "--out", str(folder)]
        _run([*command, "--quantize", quantize, "--head", weights.head or weights.quantize])

    return maker.kept(f"gguf-{quantize}", make) / "model.gguf"


def write_llama(bundle: Bundle, folder: Path) -> None:
    """A Hugging Face folder: a Llama of the bundle's shape, random weights, the bundle's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = bundle.config
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=32768,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(shape).save_pretrained(folder)
    for name, data in bundle.tokenizer_files.items():
        (folder / name).write_bytes(data)


def _llama(maker: Maker) -> Path:
    return maker.kept("llama", lambda folder: write_llama(open_bundle(maker.model), folder))


def openvino_folder(maker: Maker, weights: Weights) -> Path:
    """optimum's export: symmetric int4 like ours and Q4_0; it keeps the head in int8."""
    command = [str(Path(maker.python).parent / "optimum-cli"), "export", "openvino"]
    command += ["--model", str(_llama(maker)), "--task", "text-generation-with-past"]
    command += ["--weight-format", "int4", "--sym", "--group-size", str(weights.group)]
    return maker.kept(f"openvino-g{weights.group}", lambda folder: _run([*command, str(folder)]))


def build_genai(python: str, llama: Path, folder: Path, group: int) -> None:
    """Let onnxruntime-genai's builder make its int4 model of a Hugging Face folder."""
    command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(llama), "-o", str(folder)]
    command += ["-p", "int4", "-e", "cpu", "-c", f"{folder}.cache", "--extra_options"]
    _run([*command, f"block_size={group}", "shared_embeddings=true", "prune_lm_head=true"])
    shutil.rmtree(f"{folder}.cache", ignore_errors=True)


def genai_folder(maker: Maker, weights: Weights) -> Path:
    """The model of its builder."""
    return maker.kept(
        f"genai-g{weights.group}",
        lambda folder: build_genai(maker.python, _llama(maker), folder, weights.group),
    )
