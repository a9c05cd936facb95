"""RoPE and the writing of keys and values, on a simulated device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.config import RopeConfig
from edge.config.rope import rope_parameters
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.rope import angles, rope
from edge.executors.cuda.operators.tables import PAGE, StepTables
from edge.model.network.rope import RotaryEmbedding, rotate
from tests.configs import one_layer
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.memory import fetched, sent

ROPES = [
    RopeConfig(),
    RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=1000),
    RopeConfig(
        type="longrope",
        original_max_position_embeddings=1000,
        short_factor=(1.0,) * 32,
        long_factor=tuple(1 + 0.3 * i for i in range(32)),
    ),
]


def angles_of(device: Device, tables: StepTables, frequencies: Array, scale: float) -> int:
    head_dim = 2 * len(frequencies)
    into = device.allocate(tables.rows * head_dim * 4)
    angles(device, tables, sent(device, frequencies), into, head_dim=head_dim, scale=scale)
    return into


@pytest.mark.parametrize("config", ROPES, ids=lambda config: config.type)
def test_angles_are_those_of_the_network(device: Device, config: RopeConfig) -> None:
    positions = [0, 1, 2, 77, 1000, 4095, 131071, 1_000_000]
    frequencies, scale = rope_parameters(config, 64, 5000, 5000)
    cache = Cache.of(device, [1])
    tables = cache.tables([DEAD] * len(positions))
    device.upload(tables.positions, np.array(positions, np.int32))
    found = fetched(device, angles_of(device, tables, frequencies, scale), (len(positions), 64), np.float32)
    # The angle is rounded to float32, as everywhere; its cosine is exact to a few units of that.
    exact = (np.array(positions, np.float32)[:, None] * frequencies).astype(np.float64)
    assert np.abs(found - scale * np.concatenate([np.cos(exact), np.sin(exact)], 1)).max() < 2e-7 * scale


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(64, 3, 3), (128, 4, 2)])
def test_rows_are_rotated_and_stored(
    device: Device, head_dim: int, heads: int, kv_heads: int, int8: bool
) -> None:
    random = np.random.default_rng(head_dim)
    cache = Cache.of(device, [300, 70], layers=2, kv_heads=kv_heads, head_dim=head_dim, int8=int8)
    steps = [Step(0, 254, 3), DEAD, Step(1, 60, 4, (-1, 0, 0, 2))]
    tables = cache.tables(steps)
    columns = (heads + 2 * kv_heads) * head_dim
    partial = random.standard_normal((3, tables.rows, columns)).astype(np.float32)
    partial[:, 0, heads * head_dim : (heads + 1) * head_dim] = 0  # a key of zeros
    if int8:
        partial[0, 1, -1] = np.inf  # of the last value
    config = one_layer(
        head_dim=head_dim,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=heads * head_dim,
    )
    frequencies, scale = rope_parameters(config.rope, head_dim, 1000, 1000)
    q = sent(device, np.full((tables.rows, heads, head_dim), 7, np.float16))
    turned_by = angles_of(device, tables, frequencies, scale)
    with np.errstate(all="ignore"):
        rope(device, tables, cache.pools.layer(1), sent(device, partial), turned_by, q, slices=3, heads=heads)

    fused = torch.from_numpy((partial[0] + partial[1]) + partial[2]).unflatten(1, (-1, head_dim))
    cos, sin = RotaryEmbedding(config, 1000)(torch.tensor([254, 255, 256, 0, 60, 61, 61, 62]))
    turned = rotate(fused.transpose(0, 1), cos, sin).transpose(0, 1).numpy()
    live = [0, 1, 2, 4, 5, 6, 7]
    got = fetched(device, q, (tables.rows, heads, head_dim), np.float16)
    assert np.abs(got[live] - turned[live, :heads]).max() < 2e-3
    assert (got[3] == 7).all()

    expected = {name: array.copy() for name, array in cache.arrays.items()}
    for row, (sequence, slot) in zip(
        live, [(0, 254), (0, 255), (0, 256), (1, 60), (1, 61), (1, 62), (1, 63)], strict=True
    ):
        page, at = cache.page_table[sequence, slot // PAGE], slot % PAGE
        key, value = turned[row, heads : heads + kv_heads], fused[row, heads + kv_heads :].numpy()
        for name, written in (("keys", key), ("values", value)):
            if int8:
                codes, scales = quantized(written)
                expected[name][1, page, :, at] = codes
                expected[name[:-1] + "_scales"][1, page, :, at] = scales
            else:
                expected[name][1, page, :, at] = written
    for name, array in cache.download().items():
        # The order of roundings may move a rotated number by one unit; what is not rotated is exact.
        tolerance = {"keys": 1 if int8 else 2e-3, "key_scales": 2e-5}.get(name, 0)
        same = np.isclose(array, expected[name], rtol=0, atol=tolerance, equal_nan=True)
        assert same.all(), name


def quantized(rows: Array) -> tuple[Array, Array]:
    """The rule of `quantize_int8`: codes int8 [n, d] and scales float16 [n]."""
    largest = np.abs(rows).max(-1, keepdims=True)
    usable = (largest > 0) & np.isfinite(largest)
    factor = np.where(usable, np.float32(127) / np.where(usable, largest, 1), 0)
    codes = np.rint(np.where(usable, rows, 0) * factor).astype(np.int8)
    scales = np.where(np.isfinite(largest), largest / np.float32(127), np.nan)
    return codes, scales[:, 0].astype(np.float16)
