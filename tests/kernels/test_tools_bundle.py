"""What the C++ tools read of a bundle's numbers, beside the configuration and the weights themselves."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config import RopeConfig
from edge.config.tensors import EMBEDDING, HEAD
from edge.executors.native import library as native
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
PROGRAM = r"""
#include <cstdio>

#include "bundle.h"

int main(int, char **arguments) {
    const tools::Bundle bundle(arguments[1]);
    const edge_config &c = bundle.config;
    std::printf("{\"sizes\": [%d, %d, %d, %d, ", c.vocab_size, c.hidden_size, c.intermediate_size, c.layers);
    std::printf("%d, %d, %d, %d], ", c.heads, c.kv_heads, c.head_dim, bundle.most_context);
    std::printf("\"scales\": [%.9g, %.9g, %.9g, ", c.rms_norm_eps, c.embedding_scale, c.residual_scale);
    std::printf("%.9g, %.9g], \"rope\": [", c.logit_scale, c.rope_scale);
    for (int i = 0; i < c.head_dim / 2; ++i) std::printf("%s%.9g", i ? ", " : "", c.inverse_frequency[i]);
    const tools::Cost cost = bundle.cost(true);
    std::printf("], \"quantize\": \"%s\", ", bundle.quantize.c_str());
    std::printf("\"bytes\": [%lld, %lld], ", (long long)cost.resident, (long long)cost.streamed);
    std::printf("\"operations\": [%lld, %lld, ", (long long)cost.body, (long long)cost.head);
    std::printf("%lld], ", (long long)cost.attention);
    std::printf("\"integer\": %s}\n", cost.integer ? "true" : "false");
}
"""


@pytest.fixture(scope="module")
def read(require, tmp_path_factory) -> Callable[[Bundle], dict[str, Any]]:
    """`read(bundle)`: what the program prints of it."""
    require("c++")
    folder, library = tmp_path_factory.mktemp("print"), native.path().resolve()
    source, program = folder / "numbers.cpp", folder / "numbers"
    source.write_text(PROGRAM)
    sources = [source, KERNELS / "tools" / "bundle.cpp", KERNELS / "tools" / "json.cpp"]
    link = [library, f"-Wl,-rpath,{library.parent}", "-o", program]
    command = ["c++", "-std=c++17", f"-I{KERNELS / 'tools'}", f"-I{KERNELS / 'include'}", *sources, *link]
    subprocess.run(command, check=True, capture_output=True)

    def document(bundle: Bundle) -> dict[str, Any]:
        done = subprocess.run([program, bundle.path], capture_output=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return document


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "head", "integer"),
    [
        (QuantScheme("int4", 32, minimum=True), QuantScheme("f16"), True),
        (QuantScheme("int8", 0), QuantScheme("int4", 32), True),
        (QuantScheme("f16"), QuantScheme("int8", 32), False),
    ],
    ids=str,
)
def test_numbers(
    read, minicpm, make_bundle, scheme: QuantScheme, head: QuantScheme, integer: bool, tied: bool
):
    c = minicpm(
        **{"tie_word_embeddings": tied, "vocab_size": 1003},  # embedding and head are larger than the layers
        **{"rope": RopeConfig(theta=54321.0), "num_hidden_layers": 3, "rms_norm_eps": 2e-5},
    )
    bundle = make_bundle(c, scheme, head)
    found = read(bundle)
    assert found["sizes"] == [1003, 144, 272, 3, 8, 2, 64, 1024]
    scales = [2e-5, 12.0, 0.8 / math.sqrt(3), 32 / 144, 1.0]  # muP of tests/conftest.py
    assert found["scales"] == pytest.approx(scales, rel=1e-6)
    assert found["rope"] == pytest.approx([54321.0 ** (-i / 32) for i in range(32)], rel=1e-6)
    assert found["quantize"] == str(scheme)
    sizes = {name: bundle.data(name).nbytes for name in bundle.tensors}
    products = 3 * 144 * (2 * 8 * 64 + 2 * 2 * 64 + 3 * 272)
    unused = 0 if tied else sizes[EMBEDDING]  # a token is one row of it
    assert found["bytes"] == [sum(sizes.values()), sum(sizes.values()) - unused]
    assert found["operations"] == [products, 1003 * 144, 2 * 3 * 8 * 64]
    assert found["integer"] is integer and (HEAD in sizes) is not tied


def test_a_window_ends_the_context(read, minicpm, make_bundle):
    """Attention through it is not computed."""
    assert read(make_bundle(minicpm(sliding_window=100, sliding_layers=(0,))))["sizes"][-1] == 100
    assert read(make_bundle(minicpm(sliding_window=2000, sliding_layers=(0, 1))))["sizes"][-1] == 1024
