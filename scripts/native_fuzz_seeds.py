"""Writes the seeds of the C++ fuzzers: tests/fuzz/corpus/READER/seed-*.

Usage: python scripts/native_fuzz_seeds.py
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge.config import ModelConfig, RopeConfig
from edge.config.tensors import expected_tensors
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.writer import BundleWriter
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
TEXTS = {
    "numbers": "[0, -0, 1, -1.5e+3, 2E-3, 9223372036854775807, -9223372036854775808, 18446744073709551616]",
    "strings": r'["", "\"\\\/\b\f\n\r\t", "\u00e9\ud83d\ude00", "é😀", {"a": "\u0000", "b": null}]',
    "nested": '{"a": [[[{"b": {"c": [true, false, null]}}]]], "d": {}, "e": [ ]\n}',
}


def bundle(scheme: QuantScheme, tied: bool) -> bytes:
    """The manifest's length, the manifest and the weights of a network of one tiny layer."""
    fields: dict[str, Any] = {
        **{"model_type": "minicpm", "vocab_size": 20, "hidden_size": 32, "intermediate_size": 32},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        **{"rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope": RopeConfig()},
        **{"tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_ids": (2,)},
    }
    config = ModelConfig(**fields)
    tensors = [
        BundleTensor(name, shape, QuantScheme("f32") if len(shape) == 1 else scheme, "random", True)
        for name, shape in expected_tensors(config).items()
    ]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with BundleWriter(Path(folder) / "bundle", config, "random", tensors) as writer:
            for tensor in tensors:
                shape = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
                values = generator.standard_normal(shape, dtype=np.float32)
                stored = values if tensor.scheme.is_float else quantize(values, tensor.scheme)
                writer.write(tensor.name, pack(stored, tensor.scheme))
        manifest = (Path(folder) / "bundle" / "manifest.json").read_text()
        weights = (Path(folder) / "bundle" / "weights.safetensors").read_bytes()
    text = json.dumps(json.loads(manifest), separators=(",", ":")).encode()
    return len(text).to_bytes(4, "little") + text + weights


def decoder(sparse: bool) -> bytes:
    """As the export to `bundle` writes it, for the network of kernels/fuzz/decoder.cpp."""
    constants: dict[str, int | bool] = {
        "kernel_size": 32,
        "kernel_stride": 16,
        "block_size": 64,
        "init_blocks": 1,
    }
    constants |= {"window_size": 64, "topk": 2, "dense_len": 64, "exact_lse": False}
    document = {
        **{"format": "minicpm-edge-decoder", "version": 1, "context": 64, "end_tokens": [2, 7]},
        "rope": {"scale": 1.0, "inverse_frequency": [10000 ** (-i / 8) for i in range(8)]},
        "sparse": constants if sparse else None,
    }
    return json.dumps(document).encode()


def sampler(temperature: float, top_k: int, top_p: float) -> bytes:
    """As kernels/fuzz/sampler.cpp takes its input: everything within its range, no history and no bias."""
    in_range, options, seen = 1 | 4 | 8, bytes(10 * 4), bytes(2 * 4)
    calm = struct.pack(
        "<BIHHHBbbI", round(64 * temperature), top_k, round(65535 * top_p), 0, 65535, 64, 0, 0, 3
    )
    logits = np.random.default_rng(0).integers(-40, 40, 100, np.int8)
    return struct.pack("<I", 99) + options + bytes([in_range]) + calm + seen + bytes(4) + logits.tobytes()


def number(value: int) -> bytes:
    """A number as kernels/fuzz takes it: the value, and that it is meant."""
    return struct.pack("<IB", value, 0)


def batch(tokens: list[int], parents: list[int], wishes: int) -> bytes:
    """A step of kernels/fuzz/forward.cpp. parents: 0 for a root, else 8 k + the place of the parent."""
    whole = b"".join(map(number, tokens)) + b"".join(number(i) for i in range(len(tokens)))
    return bytes([1, wishes]) + number(len(tokens) - 1) + whole + bytes(parents)


def forward(model: int, more: bool = False) -> bytes:
    """Prefill, a tree, one of its paths kept, and what follows; of the model with this number.

    more: with everything beyond a Llama.
    """
    prefill, tree = (
        batch([*range(1, 31)] * 2, [0] * 60, 1 | 16),
        batch([5, 6, 7, 8], [0, 9, 9, 10], 1 | 8 | 16),
    )
    keep = bytes([0]) + struct.pack("<IBBI", 60, 0, 1, 2) + bytes([0, 1, 0, 0])
    return bytes([8 * more, model]) + prefill + tree + keep + batch([9, 10], [0, 0], 1 | 16 | 64)


def restored(model: int, length: int) -> bytes:
    """Rows of small numbers for kernels/fuzz/restore.cpp."""
    return bytes([0, model]) + number(length) + bytes(range(1, 60)) * 4


def main() -> None:
    """Write the files."""
    seeds = {f"json/{name}": text.encode() for name, text in TEXTS.items()}
    seeds |= {"bundle/int4": bundle(QuantScheme("int4", 32, minimum=True), tied=False)}
    seeds |= {"bundle/ternary": bundle(QuantScheme("ternary", 0), tied=True)}
    seeds |= {"decoder/dense": decoder(sparse=False), "decoder/sparse": decoder(sparse=True)}
    seeds |= {"sampler/greedy": sampler(0, 0, 1), "sampler/filtered": sampler(0.8, 20, 0.9)}
    seeds |= {"model/int8": bytes([0, 1]), "model/sparse": bytes([1, 0x83]), "model/more": bytes([0, 0x41])}
    seeds |= {
        f"forward/{name}": forward(model) for name, model in {"dense": 1, "int8": 9, "sparse": 130}.items()
    }
    seeds |= {"forward/more": forward(9, more=True)}
    seeds |= {"restore/dense": restored(0, 70), "restore/sparse": restored(129, 300)}
    for name, data in seeds.items():
        reader, _, seed = name.partition("/")
        (CORPUS / reader).mkdir(parents=True, exist_ok=True)
        (CORPUS / reader / f"seed-{seed}").write_bytes(data)


if __name__ == "__main__":
    main()
