"""Times this project in turn with llama.cpp, OpenVINO GenAI and onnxruntime-genai, on the same shape.

    python scripts/bench_peers.py [--parts decode,llama,prefill,ternary,depth,busy] [--rounds 5]
        [--models FOLDER] [--llama PYTHON] [--openvino PYTHON] [--onnxruntime-genai PYTHON]

Each peer is installed in an environment of its own (CONTRIBUTING.md, Peers). An option or a variable
(EDGE_PEER_LLAMA, EDGE_PEER_OPENVINO, EDGE_PEER_ONNXRUNTIME_GENAI) names its Python; a peer that is not
installed is left out with a sentence. Their models are made first, which takes minutes, and kept in FOLDER,
if it is named.

decode   64 tokens at a context of 512, int4 in groups of 32 and of 128; llama.cpp Q4_0
llama    the same in groups of 32, beside llama.cpp alone
prefill  512 and 4096 tokens from an empty context, the same programs
ternary  decode as above: groups of 128 and an int4 head; llama.cpp TQ2_0 and a Q4_0 head
depth    decode at 512, 32768 and 130000 tokens: our sparse and dense attention, KV caches of several types
busy     decode beside busy processes (--busy); one is an endless loop

Rounds go through all programs in turn, every second one backwards, each in a fresh process, so that a drift
touches all. The figures are medians; ratios are medians of the rounds' ratios. What takes long has 3 rounds
at most. llama.cpp runs with flash attention off and on. Where the CPU has AMX, OpenVINO runs without it, and
once more with it. Decode of llama.cpp and of ours is also told as a share of the read bandwidth that was
measured in the same round, over the bytes of all weights. Random weights will do. The last line is one JSON
document.
"""

from __future__ import annotations

from peers.comparison import main

if __name__ == "__main__":
    main(__doc__)
