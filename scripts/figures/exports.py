"""The tables of docs/export.md, export-onnx.md and export-executorch.md."""

from __future__ import annotations

from collections.abc import Callable

from .declaration import Document, Lines, Table, percent

EXPORT, ONNX, EXECUTORCH = "docs/export.md", "docs/export-onnx.md", "docs/export-executorch.md"
_SMOLLM2, _HALF_B, _8B = "SmolLM2-135M", "MiniCPM4-0.5B shape", "MiniCPM4-8B shape"
_ROUNDED = "0.1: activations are rounded to 8 bits"
_CHECKED = {  # what is checked -> its limit in nats and why; tests/test_docs.py holds them against the code
    "bundle": ("`bundle`", "1e-6"),
    "gguf": ("`gguf` in llama.cpp", _ROUNDED),
    "coreml": ("`coreml` in NumPy", "1e-3: rotary tables and scaled weights are float16"),
    "onnx-portable": ("`onnx`, portable", _ROUNDED),
    "onnx": ("`onnx`, full", _ROUNDED),
    "executorch-portable": ("`executorch`, portable", "0.5: one scale per token for the activations"),
    "executorch": ("`executorch`, full", _ROUNDED),
}


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _off(found: Document) -> str:
    """How far the size is from the plan."""
    share = found["bytes"] / found["planned_bytes"] - 1
    return "to the byte" if not share else "< 0.01 % off" if abs(share) < 5e-5 else f"{percent(share, 2)} off"


def _took(found: Document, memory: str = "peak_bytes") -> str:
    """Wall clock, CPU time and peak memory."""
    seconds, processor = found["seconds"], found["processor_seconds"]
    return f"{seconds:.3g} s, {processor:.3g} s, {_size(found[memory])}"


def check(own: Document, int4: Document) -> Lines:
    lines: Lines = [["target", "limit (nats)", f"measured with {_SMOLLM2}"]]
    for kind, (words, limit) in _CHECKED.items():
        cells = [
            f"{document['folders'][kind]['check']['divergence']:.2g} ({words_})"
            for document, words_ in ((own, "Q4_1, the source's own"), (int4, "int4-g32"))
            if kind in document["folders"]
            # Without llama.cpp the file is read by ourselves, which says nothing about llama.cpp.
            if (kind, document["folders"][kind]["check"]["runtime"]) != ("gguf", "edge")
        ]
        lines.append([words, limit, ", ".join(cells)])
    lines.append(["`gguf` read by edge", "1e-6", "where llama.cpp is missing"])
    return lines


def exports(own: Document, int4: Document, half: Document, sparse: Document) -> Lines:
    lines: Lines = [
        ["model", "target", "size", "of the plan", "time, CPU time, peak memory with mapped files"]
    ]
    for document, words in (
        (own, f"{_SMOLLM2}, Q4_1, context 2048"),
        (int4, f"{_SMOLLM2}, int4-g32, context 1024"),
        (half, f"{_HALF_B}, random int4-g32, context 2048"),
        (sparse, f"{_HALF_B}, int8 head, sparse, context 32768; with a reference of 8451 tokens"),
    ):
        for kind, found in document["folders"].items():
            target, _, flavour = kind.partition("-")
            name = f"`{target}`" + (f", {flavour}" if flavour else "")
            lines.append([words, name, _size(found["bytes"]), _off(found), _took(found["export"])])
    return lines


def onnx_speed(document: Document) -> Lines:
    words = {
        "native": "native",
        "full": "full",
        "portable": "portable, our executor",
        "portable_in_genai": "portable in onnxruntime-genai",
        "genai_builder": "onnxruntime-genai's own builder (int4, block 32), Llama of the same shape",
        "genai_builder_our_entries": "the same, with our session entry",
    }
    lines: Lines = [
        [
            "",
            "prefill, tokens/s",
            "decode, tokens/s",
            "decode, of native",
            "of onnxruntime-genai's builder",
            "of that builder, with our session entry",
        ]
    ]
    for name, said in words.items():
        ratios = (document[f"decode_of_{peer}"][name] for peer in ("native", *list(words)[-2:]))
        speeds = (
            f"{document[kind][name]['median']:.{digits}f}" for kind, digits in (("prefill", 0), ("decode", 1))
        )
        lines.append([said, *speeds, *(f"{each:.2f}" for each in ratios)])
    return lines


def onnx_sizes(half: Document, eight: Document) -> Lines:
    lines: Lines = [
        [
            "",
            "files",
            "of the plan",
            "export: time, CPU time, anonymous memory",
            "`--check`: time, CPU time, anonymous memory",
        ]
    ]
    for document, words in ((half, _HALF_B), (eight, _8B)):
        for kind, flavour in (("onnx", "full"), ("onnx-portable", "portable")):
            found = document["folders"][kind]
            took = (_took(found[step], "peak_anonymous_bytes") for step in ("export", "check"))
            lines.append([f"{words}, {flavour}", _size(found["bytes"]), _off(found), *took])
    return lines


def distance(*kinds: str) -> Callable[[Document], Lines]:
    """How far folders and native are from exact arithmetic over the same weights."""
    words = {
        "onnx-portable": "portable",
        "executorch-portable": "portable",
        "onnx": "full",
        "executorch": "full",
        "native": "native (int8 activations, float16 cache)",
    }

    def table(document: Document) -> Lines:
        folders = document["folders"].items()
        found = {kind: each["distance"] for kind, each in folders if "distance" in each}
        found["native"] = document["native_distance"]
        exact = found["native"]["perplexity_a"]
        headers = [
            "KL (nats)",
            "99 % below",
            "largest",
            "same best token",
            f"perplexity (exact: {exact:.3f})",
        ]
        lines: Lines = [["", *headers]]
        for kind in kinds:
            each = found[kind]
            kl = [f"{each['kl_divergence']:.4f}", f"{each['kl_p99']:.3f}", f"{each['kl_max']:.3f}"]
            lines.append(
                [words[kind], *kl, percent(each["top1_agreement"], 1), f"{each['perplexity_b']:.3f}"]
            )
        return lines

    return table


def executorch_speed(own: Document, half: Document) -> Lines:
    lines: Lines = [
        [
            "",
            *(
                f"{model}: {what}"
                for model in (_SMOLLM2, _HALF_B)
                for what in ("prefill, tokens/s", "decode, tokens/s", "of native")
            ),
        ]
    ]
    for name in ("native", "full", "portable"):
        cells = [name]
        for document in (own, half):
            cells += [
                f"{document['prefill'][name]['median']:.0f}",
                f"{document['decode'][name]['median']:.0f}",
            ]
            cells.append(f"{document['decode_of_native'][name]:.2f}")
        lines.append(cells)
    return lines


def executorch_sizes(own: Document, half: Document) -> Lines:
    lines: Lines = [
        ["", "`model.pte`", "of the plan", "export: time, CPU time, peak memory with mapped files"]
    ]
    for document, words in ((own, f"{_SMOLLM2} (Q4_1)"), (half, f"{_HALF_B}, random int4")):
        for kind, flavour in (("executorch", "full"), ("executorch-portable", "portable")):
            found = document["folders"][kind]
            lines.append([f"{words}, {flavour}", _size(found["bytes"]), _off(found), _took(found["export"])])
    return lines


TABLES = {
    "check": Table(EXPORT, ("exports-smollm2", "exports-smollm2-int4"), check),
    "exports": Table(
        EXPORT,
        ("exports-smollm2", "exports-smollm2-int4", "exports-0.5b", "exports-0.5b-sparse"),
        exports,
    ),
    "onnx-speed": Table(ONNX, ("onnx-speed",), onnx_speed),
    "onnx-sizes": Table(ONNX, ("exports-0.5b", "exports-8b"), onnx_sizes),
    "onnx-distance": Table(ONNX, ("exports-smollm2",), distance("onnx-portable", "onnx", "native")),
    "executorch-speed": Table(EXECUTORCH, ("executorch-speed-smollm2", "executorch-speed"), executorch_speed),
    "executorch-sizes": Table(EXECUTORCH, ("exports-smollm2", "exports-0.5b"), executorch_sizes),
    "executorch-distance": Table(
        EXECUTORCH, ("exports-smollm2",), distance("executorch-portable", "executorch", "native")
    ),
}
