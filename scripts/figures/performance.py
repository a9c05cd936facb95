"""The tables of docs/performance.md about this project alone."""

from __future__ import annotations

from .declaration import Document, Lines, Table, attention_of, percent, rate, row_of

PAGE = "docs/performance.md"
_OPERATORS = {  # of a profile -> in words; what is not named here is small
    "gate and up": ("gate_up",),
    "down": ("down",),
    "head": ("head",),
    "query, key and value": ("qkv",),
    "output": ("o",),
    "attention": ("attention",),
}


def limits(threads: Document, kernels: Document) -> Lines:
    by_threads = {each["threads"]: each for each in threads["machine"]["limits"]}
    two, one = by_threads[2], by_threads[1]
    region = kernels["limits"]["parallel region us"]

    def giga(each: Document, key: str) -> str:
        return f"{1000 * each[key] / 2:.0f} G/s"  # a multiply-add is two operations

    return [
        ["what", "2 threads", "1 thread"],
        [
            "reading 1 GiB from huge pages",
            *(f"{each['read_bandwidth_gb_s']:.1f} GB/s" for each in (two, one)),
        ],
        ["int8 multiply-adds, registers only", *(giga(each, "int8_tops") for each in (two, one))],
        ["float32 multiply-adds (FMA), registers only", *(giga(each, "float_tflops") for each in (two, one))],
        ["a parallel region with nothing to do", f"{region:.1f} µs", ""],
    ]


def decoder(kernels: Document, ternary: Document, threads: Document) -> Lines:
    columns = [each["decoder"] for each in (kernels, ternary)]
    long = row_of(threads, test="prefill", tokens=4096, threads=2)
    sizes = [f"{each['model']['weight_bytes'] / 1e6:.0f} MB" for each in (kernels, ternary)]
    rows = [
        ["prefill of 512 tokens, tokens/s", *(f"{each['prefill tokens/s']:.0f}" for each in columns)],
        ["prefill of 4096 tokens, tokens/s", f"{rate(long):.0f}", ""],
        [
            "decode at context 512, sampling included, tokens/s",
            *(f"{each['decode tokens/s']:.0f}" for each in columns),
        ],
        [
            "decode, share of read bandwidth over weight bytes",
            *(percent(each["decode share of read bandwidth"]) for each in columns),
        ],
    ]
    for n in (2, 4, 8, 16):
        steps = (f"{each[f'verify {n} / decode']:.2f}" for each in columns)
        rows.append([f"verification of {n} tokens, in decode steps", *steps])
    return [["what", f"int4 ({sizes[0]})", f"ternary (group 128, int4 head; {sizes[1]})"], *rows]


def operators(document: Document) -> Lines:
    found = {test: row_of(document, test=test)["operators"] for test in ("decode", "prefill")}
    totals = {test: sum(each["seconds"] for each in rows.values()) for test, rows in found.items()}
    lines: Lines = []
    left = dict.fromkeys(found, 1.0)
    for words, names in _OPERATORS.items():
        cells = [words]
        for test, rows in found.items():
            seconds = sum(rows[name]["seconds"] for name in names)
            limit = sum(rows[name]["limit_seconds"] for name in names)
            left[test] -= seconds / totals[test]
            cells += [percent(seconds / totals[test]), percent(limit / seconds)]
        lines.append(cells)
    lines.append(
        [
            "all norms, rope, embedding and quantizing",
            percent(left["decode"]),
            "",
            percent(left["prefill"]),
            "",
        ]
    )
    headers = ["operator", "decode step", "of its limit", "prefill of 512", "of its limit"]
    return [headers, *lines]


def linear(document: Document) -> Lines:
    shares = document["kernels"]
    columns = {"n=1 share of read bandwidth": "1 token: read bandwidth"}
    columns |= {f"n={n} share of int8 peak": f"{n} tokens: int8 peak" for n in (8, 256)}
    schemes = dict.fromkeys(name.partition(" ")[0] for name in shares)
    rows = [[scheme, *(percent(shares[f"{scheme} {key}"]) for key in columns)] for scheme in schemes]
    return [["weights", *columns.values()], *rows]


_KV_TYPES = ("int16", "float16", "int8", "int4")


def long_context(document: Document) -> Lines:
    kinds = [kind for kind in _KV_TYPES if any(row["kv_type"] == kind for row in document["results"])]
    decodes, prefills = (
        [row_of(document, test=test, kv_type=kind) for kind in kinds] for test in ("decode", "prefill")
    )
    attention = [attention_of(row) for row in decodes]
    halves = attention[kinds.index("float16")][0]
    return [
        ["what", *(f"{kind} KV" for kind in kinds)],
        ["decode, tokens/s", *(f"{rate(row):.0f}" for row in decodes)],
        [
            "attention of a decode step",
            *(
                f"{1000 * t:.1f} ms: {b / 1e9:.1f} GB/s, {percent(share)} of its limit"
                for t, b, share in attention
            ),
        ],
        [
            "attention, faster than with float16 KV by",
            *(
                "" if kind == "float16" else f"{halves / each[0]:.2f} x"
                for kind, each in zip(kinds, attention, strict=True)
            ),
        ],
        ["prefill of 512 tokens, tokens/s", *(f"{rate(row):.0f}" for row in prefills)],
        ["attention of that prefill, of its limit", *(percent(attention_of(row)[2]) for row in prefills)],
    ]


def streams(document: Document) -> Lines:
    rows = []
    for count, found in document["streams"].items():
        rows.append(
            [
                count,
                f"{found['tokens/s']:.0f}",
                f"{found['of one']:.2f} x",
                f"{found['pass ms']:.2f} ms",
                f"{found['beside the pass ms']:.2f} ms",
            ]
        )
    return [
        ["sequences", "tokens/s in total", "of one", "a pass alone", "scheduler and Python, per pass"],
        *rows,
    ]


def prompt_beside(document: Document) -> Lines:
    found = document["prompt"]
    return [
        [f"a prompt of {found['tokens']} tokens beside {found['streams']} sequences", ""],
        ["prompt alone, tokens/s", f"{found['tokens/s alone']:.0f}"],
        ["prompt beside the sequences, tokens/s", f"{found['tokens/s beside']:.0f}"],
        ["the same, of its speed alone less their share", percent(found["of alone less the streams' share"])],
        ["a token of theirs meanwhile, p50 / p99", f"{found['p50 ms']:.0f} / {found['p99 ms']:.0f} ms"],
    ]


def kv_error(document: Document) -> Lines:
    kinds = [kind for kind in _KV_TYPES if kind in document["results"][0]["errors"]]
    rows = []
    for found in document["results"]:
        heads, kv_heads, dim = found["shape"]
        errors = (percent(found["errors"][kind], 2) for kind in kinds)
        rows.append([f"{heads}/{kv_heads} heads of {dim}", str(found["positions"]), *errors])
    return [["attention", "positions", *(f"{kind} KV" for kind in kinds)], *rows]


def kv_quality(document: Document) -> Lines:
    kinds = {"float32": "float32 activations", "int8": "int8 activations"}
    lines = []
    for found in document["results"]:
        cells = [found["kv_type"], str(found["bytes_per_token"])]
        for activations in kinds:
            row = found["language"][activations]
            exact = "kl_divergence" not in row
            cells += ["", ""] if exact else [f"{row['kl_divergence']:.1e}", percent(row["top1_agreement"], 2)]
            cells.append(f"{row['perplexity']:.3f}")
        lines.append([*cells, *(percent(found["needles"][kind], 1) for kind in ("dense", "sparse"))])
    headers = ["KV cache", "bytes per token"]
    for words in kinds.values():
        headers += [f"{words}: KL", "same top token", "perplexity"]
    return [[*headers, f"needles at {document['needle']['length']}: dense", "sparse"], *lines]


def start(document: Document) -> Lines:
    seconds, size = document["seconds"], document["bytes"]
    runs = seconds["all runs"]
    return [
        ["8B shape (int4), context 2048, warm page cache", ""],
        [
            "process start to first word",
            f"{seconds['to the first word']:.2f} s ({min(runs):.2f} to {max(runs):.2f} in {len(runs)} runs)",
        ],
        ["a process that loads nothing (`edge --version`)", f"{seconds['a start that loads nothing']:.2f} s"],
        ["weights", f"{size['weights'] / 1e9:.2f} GB"],
        [
            "resident memory at the first word",
            f"{size['resident'] / 1e6:.0f} MB, {percent(document['resident / plan'], 1)} of weights + "
            "KV cache at the full context + workspace",
        ],
    ]


def weights_in_memory(document: Document) -> Lines:
    words = {
        "mapped": "mapped",
        "mapped, 4 KB": "mapped in 4 KiB pages",
        "collapse": "mapped, then MADV_COLLAPSE",
    }
    rows = []
    for way, found in document["ways"].items():
        name = words.get(way, "copied into huge pages")
        if isinstance(found, str):
            rows.append([name, f"refused: {found}", "", "", ""])
            continue
        first = document["first seconds"][way]
        cells = [f"{found['seconds']:.3g} s (first time {first:.3g} s)", f"{found['read GB/s']:.1f} GB/s"]
        rows.append([name, *cells, percent(found["in huge pages"]), f"{found['private MB'] / 1000:.1f} GB"])
    size = f"{document['bytes'] / 1e9:.1f} GB"
    return [[size, "ready", "read, in turn", "in huge pages", "private memory"], *rows]


def sampler(document: Document) -> Lines:
    times, shares = document["microseconds"], document["percent_of_token"]
    rows = [[name, f"{times[name]:.0f}", f"{shares[name]:.2f} %"] for name in shares]
    return [["setting", "µs per token", "share of a token's time"], *rows]


TABLES = {
    "limits": Table(PAGE, ("threads", "kernels"), limits),
    "decoder": Table(PAGE, ("kernels", "kernels-ternary", "threads"), decoder),
    "operators": Table(PAGE, ("operators",), operators),
    "linear": Table(PAGE, ("kernels",), linear),
    "long-context": Table(PAGE, ("long-context",), long_context),
    "streams": Table(PAGE, ("streams",), streams),
    "streams-prompt": Table(PAGE, ("streams",), prompt_beside),
    "kv-error": Table(PAGE, ("kv-error",), kv_error),
    "kv-quality": Table(PAGE, ("kv-quality",), kv_quality),
    "start": Table(PAGE, ("start",), start),
    "weights-in-memory": Table(PAGE, ("weights-in-memory",), weights_in_memory),
    "sampler": Table(PAGE, ("sampler",), sampler),
}
