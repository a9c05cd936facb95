"""The benchmarks whose documents lie in docs/figures, in the order in which `MEASURE=all` runs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .declaration import Benchmark, needs_module, short_profile

_PEER = "python scripts/bench_peers.py --need-all --models BUILD/peers --parts"
_FAMILY = f"{_PEER} llama --model"
_LLAMA = needs_module("llama_cpp", "llama-cpp-python is not installed: `make .venv/.llama` compiles it.")
_GENAI = needs_module("onnxruntime_genai", "onnxruntime-genai is not installed: `make setup` installs it.")
_TRITON = needs_module("triton", "triton is not installed: `make setup` installs it.")
_GUESSES = "python scripts/bench_speculation.py --parts"
_DRAFTS = "python scripts/bench_drafts.py --parts"
_ASKED = "--questions TEXT/spec_bench.dev.jsonl --per-category 2"
_TEXT = "TEXT/wikitext-2-raw.valid.txt"
_SMALL = "BUILD/small-model"
_HALF_B = "edge profile random:minicpm4-0.5b --quantize int4"
# The others, exports to ExecuTorch and Core ML, take hours.
_WRITES = " ".join(
    f"--write '{name}'"
    for name in (
        *("conversation", "KV cache", "conversion", "cache entry", "checkpoint", "training checkpoint"),
        *("export to bundle", "export to gguf", "export to onnx"),
    )
)


def _server() -> str | None:
    named = os.environ.get("EDGE_PEER_LLAMA_SERVER")
    return (
        None if named else "EDGE_PEER_LLAMA_SERVER does not name llama.cpp's server (CONTRIBUTING.md, Peers)."
    )


def _drafts() -> str | None:
    trained = Path(__file__).resolve().parents[2] / "build" / "runs" / "draft" / "eagle2" / "model"
    return None if trained.exists() else "`runs/draft_smollm2.sh` trains them."


def _clang() -> str | None:
    return None if shutil.which("clang++") else "clang++ is not installed: `make packages` installs it."


def _llvm_mca() -> str | None:
    found = shutil.which("llvm-mca-19") or shutil.which("llvm-mca")
    return None if found else "llvm-mca is not installed: `apt-get install llvm-19`."


BENCHMARKS = {
    "kernels": Benchmark("python scripts/bench_kernels.py", 2, per_machine=True),
    "kernels-ternary": Benchmark(
        "python scripts/bench_kernels.py --quantize ternary --head int4", 2, per_machine=True
    ),
    "peers": Benchmark(f"{_PEER} busy", 4, per_machine=True),
    "peers-decode": Benchmark(f"{_PEER} decode", 4, per_machine=True),
    "peers-prefill": Benchmark(f"{_PEER} prefill", 8, per_machine=True),
    "peers-ternary": Benchmark(f"{_PEER} ternary", 1, per_machine=True),
    "peers-depth": Benchmark(f"{_PEER} depth", 5, per_machine=True),
    "peers-streams": Benchmark(f"{_PEER} streams", 2, per_machine=True),
    "families-qwen3": Benchmark(f"{_FAMILY} random:qwen3-0.6b", 4),
    "families-minicpm5": Benchmark(f"{_FAMILY} random:minicpm5-2b", 10),
    "threads": Benchmark(
        f"{_HALF_B} --threads 1,2 --prefill 512,4096 --repeat 3 --json",
        2,
        kept=short_profile,
        per_machine=True,
    ),
    "operators": Benchmark(
        f"{_HALF_B} --depth 512 --fill synthetic --ops --repeat 3 --json", 1, kept=short_profile
    ),
    "long-context": Benchmark(
        f"{_HALF_B} --kv int16,float16,int8 --attention dense --depth 32768 --fill synthetic --ops "
        "--repeat 3 --json",
        2,
        kept=short_profile,
        per_machine=True,
    ),
    "sparse": Benchmark(
        f"{_HALF_B} --attention dense,sparse --depth 512,32768,130000 --fill synthetic --repeat 3 --json",
        5,
        kept=short_profile,
    ),
    "cycles": Benchmark("python -m scripts.cycles", 4, timed=False, needs=(_llvm_mca,)),
    "predictions": Benchmark("python -m scripts.cycles.predictions", 0.1, timed=False),
    "prediction-check": Benchmark("python -m scripts.cycles.check", 3, needs=(_llvm_mca,)),
    "cuda-kernels": Benchmark("python -m scripts.cuda_kernels", 6, timed=False, needs=(_TRITON,)),
    "cuda-predictions": Benchmark("python -m scripts.cuda_performance", 1, timed=False, needs=(_TRITON,)),
    "streams": Benchmark("python scripts/bench_streams.py", 3, per_machine=True),
    "sampler": Benchmark("python scripts/bench_sampler.py", 0.5, per_machine=True),
    "start": Benchmark("python scripts/bench_start.py", 3, per_machine=True),
    "weights-in-memory": Benchmark("python scripts/bench_huge_pages.py --model random:minicpm4-8b", 2),
    "onnx-speed": Benchmark(
        "python scripts/bench_runtimes.py onnx --rounds 5 --genai BUILD/genai-0.5b", 4, needs=(_GENAI,)
    ),
    "executorch-speed": Benchmark("python scripts/bench_runtimes.py executorch --rounds 5", 3),
    "executorch-speed-smollm2": Benchmark(
        "python scripts/bench_runtimes.py executorch smollm2-135m --rounds 5", 3
    ),
    "exports-smollm2": Benchmark(
        "python scripts/bench_exports.py smollm2-135m bundle gguf onnx onnx-portable executorch "
        f"executorch-portable --context 2048 --text {_TEXT}",
        5,
        needs=(_LLAMA,),
    ),
    "exports-smollm2-int4": Benchmark(
        "python scripts/bench_exports.py smollm2-135m gguf coreml onnx onnx-portable --quantize int4 "
        "--context 1024",
        3,
        needs=(_LLAMA,),
    ),
    "exports-0.5b": Benchmark(
        "python scripts/bench_exports.py random:minicpm4-0.5b gguf onnx onnx-portable executorch "
        "executorch-portable --context 2048",
        4,
        needs=(_LLAMA,),
    ),
    "exports-0.5b-sparse": Benchmark(
        "python scripts/bench_exports.py random:minicpm4-0.5b coreml --quantize int4 --attention sparse "
        "--context 32768 --no-check",
        4,
    ),
    "exports-8b": Benchmark(
        "python scripts/bench_exports.py random:minicpm4-8b onnx onnx-portable --context 2048", 6
    ),
    "kv-error": Benchmark("python scripts/bench_kv_error.py", 0.5, timed=False),
    "kv-quality": Benchmark(f"python scripts/bench_kv_quality.py --text {_TEXT}", 12, timed=False),
    "needle": Benchmark("python -m edge.train.needle", 2, timed=False),
    "quantization-smollm2": Benchmark(
        f"python scripts/quantization_table.py --text {_TEXT} --sequences 16 --out BUILD/smollm2.json",
        25,
        timed=False,
        state="smollm2.json",
    ),
    "quantization-small-model": Benchmark(
        f"python scripts/quantization_table.py --text {_TEXT} --model {_SMALL} --tokens 20000 --sequences 32 "
        "--length 256 --out BUILD/small-model.json",
        12,
        timed=False,
        state="small-model.json",
        prepare=(
            (f"python -m edge.train.small_model {_SMALL} {_TEXT} TEXT/gsm8k.train.jsonl", "small-model"),
        ),
    ),
    "token-coverage": Benchmark(
        f"python scripts/token_coverage.py TEXT/minicpm4-0.5b {_TEXT} TEXT/gsm8k.train.jsonl "
        "TEXT/spec_bench.dev.jsonl TEXT/alpaca_cleaned.sample.jsonl TEXT/dpo_en.sample.jsonl",
        1,
        timed=False,
    ),
    "speculation-jobs": Benchmark(
        f"{_GUESSES} jobs --rounds 2 --lookups 'ngram-mod, 4 and 1 to 8'", 15, needs=(_server,)
    ),
    "speculation-draft": Benchmark(f"{_GUESSES} draft --rounds 2 --every 4", 12, needs=(_server,)),
    "speculation-chat": Benchmark(f"{_GUESSES} chat --rounds 2 --questions TEXT/spec_bench.dev.jsonl", 4),
    "drafts-training": Benchmark(f"{_DRAFTS} training", 0.1, timed=False, needs=(_drafts,)),
    "drafts-categories": Benchmark(f"{_DRAFTS} categories {_ASKED} --tokens 128", 10, needs=(_drafts,)),
    "drafts-kinds": Benchmark(f"{_DRAFTS} training,kinds {_ASKED} --tokens 128", 8, needs=(_drafts,)),
    "drafts-heads": Benchmark(f"{_DRAFTS} heads {_ASKED} --tokens 128 --rounds 1", 3, needs=(_drafts,)),
    "drafts-types": Benchmark(f"{_DRAFTS} types {_ASKED} --tokens 64 --rounds 1", 6, needs=(_drafts,)),
    "speculation-planted": Benchmark(f"{_GUESSES} planted --shapes minicpm4-0.5b --tokens 256", 6),
    "speculation-planted-8b": Benchmark(
        f"{_GUESSES} planted --shapes minicpm4-8b --heads 'free,EAGLE-2,FR 1/4' --tokens 96 --rounds 1", 9
    ),
    "server": Benchmark(
        "python scripts/bench_server.py --state BUILD/server", 10, state="server", per_machine=True
    ),
    "server-peer": Benchmark(
        "python scripts/bench_server.py --parts peer --state BUILD/server-peer",
        3,
        state="server-peer",
        needs=(_server,),
        per_machine=True,
    ),
    "constraints": Benchmark("python scripts/bench_constraints.py", 2, per_machine=True),
    # Each of these scripts trains what is not trained yet, and ends with the document.
    "training-wsd": Benchmark("runs/wsd.sh", 240, timed=False),
    "training-mup": Benchmark("runs/mup.sh", 240, timed=False),
    "training-ternary": Benchmark("runs/ternary.sh", 240, timed=False),
    "training-multi-token": Benchmark("runs/multi_token.sh", 120, timed=False),
    "training-long": Benchmark("runs/long.sh", 30, timed=False),
    "training-tiny": Benchmark("runs/tiny.sh", 60, timed=False),
    "training-speed": Benchmark("python scripts/bench_training.py", 5),
    "fuzz": Benchmark(
        "python -m tests.fuzz --executions 20000 --folder BUILD/fuzz", 35, timed=False, state="fuzz"
    ),
    "fuzz-native": Benchmark(
        "scripts/fuzz-native .venv/bin BUILD/fuzz-native 20000",
        40,
        timed=False,
        state="fuzz-native",
        needs=(_clang,),
    ),
    "torture": Benchmark(f"python -m tests.torture --kills 100 {_WRITES}", 20, timed=False),
    "soak": Benchmark(
        "python -m tests.torture.soak --seconds 3600 --state BUILD/soak", 65, timed=False, state="soak"
    ),
}
