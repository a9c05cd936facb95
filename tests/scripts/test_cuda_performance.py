"""Predictions for GPUs: bytes counted by hand, the loops of a listing, and that no bound is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from edge.config import SparseConfig
from edge.config.presets import preset
from edge.kernels.usage import Usage
from scripts.cuda_model import times as timing
from scripts.cuda_model.code import Code, Part, parts_of
from scripts.cuda_model.gpus import GPUS, REACHED, Gpu
from scripts.cuda_model.passes import Launch, Rows, launches_of, resident
from scripts.cuda_model.times import moved, seconds_of, time_of, times_of
from scripts.cuda_model.work import Model, Work, work_of

CONFIG = preset("minicpm4-8b")
MODEL = Model(CONFIG, CONFIG.sparse or SparseConfig())
ORIN = GPUS["jetson-agx-orin"]
LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
        /*0020*/              @!P0 LDG.E.U16 R8, [R4.64] ;
        /*0030*/                   HMMA.16816.F32 R8, R4, R2, RZ ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   STG.E [R2.64], R8 ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
        /*0090*/                   NOP;
"""


def some_code(loop: int = 100, registers: int = 64, shared: int = 32768) -> Code:
    """A kernel of four warps that asks for its shared memory at once."""
    usage = Usage(registers=registers, stack=0, spills=0, shared=0, tensor_cores=0, wide_loads=0)
    return Code(usage, 4, shared, Part(loop, 0, 0), Part(50, 0, 0), shared)


@pytest.fixture(autouse=True)
def any_code(monkeypatch):
    """No kernel is compiled here."""
    monkeypatch.setattr(timing, "code_of", lambda kernel: some_code())


def step(context: int, rows: int, gpu: Gpu = ORIN) -> float:
    """Seconds of a decode step."""
    taken = Rows(context - 1, rows, prompt=False)
    launches = launches_of(CONFIG, "int4", 128, taken, MODEL.sparse, wanted=rows)
    return seconds_of(times_of(launches, MODEL, taken, gpu))


def test_the_bytes_of_one_matrix():
    numbers = {"rows": 1, "outputs": 32768, "columns": 4096, "chunks": 16, "slice_chunks": 16}
    launch = Launch("linear.int4.g128.r8", (1, 512, 1), tuple(numbers.items()))
    work = work_of(launch, MODEL, Rows(99, 1, prompt=False))
    codes, scales = 32768 * 4096 // 2, 32768 * 4096 // 128 * 2
    assert work.memory == codes + scales == 69_206_016
    assert work.buffers == (4096 * 2, 32768 * 4)  # its inputs and sums stay in L2
    assert moved(work, 16, ORIN) == 69_206_016
    assert work.programs == 512 and work.steps == 4096 / 256
    assert moved(replace(work, buffers=(ORIN.cache,)), 16, ORIN) == 69_206_016 + ORIN.cache


def test_a_step_reads_the_weights_once_and_the_selected_keys():
    taken = Rows(131071, 1, prompt=False)
    launches = launches_of(CONFIG, "int4", 128, taken, MODEL.sparse, wanted=1)
    times = times_of(launches, MODEL, taken, ORIN)
    weights = resident(CONFIG, "int4", 128, 0, 0) - 73472 * 4096 * 33 // 64  # less the embedding
    assert times["linear.int4.g128.r8"].moved == weights
    blocks, of_block, heads, layers = 64 + 32, 2 * 64 * 128 * 2, 2, 32
    assert times["attention.decode.sparse.f16.d128"].moved == blocks * of_block * heads * layers
    assert sum(launches.values()) == sum(time.launches for time in times.values())
    assert times["linear.int4.g128.r8"].launches == 4 * 32 + 1


def test_what_rows_select():
    assert MODEL.blocks(Rows(0, 130, prompt=True)).tolist() == [1] * 64 + [2] * 64 + [3] * 2
    assert MODEL.blocks(Rows(8191, 2, prompt=True)).tolist() == [128, 96]
    assert MODEL.blocks(Rows(100_000, 2, prompt=False)).tolist() == [96, 96]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_longer_contexts_and_more_rows_are_never_faster(gpu):
    contexts = (16384, 32768, 65536, 131072)
    steps = [step(context, 1, gpu) for context in contexts]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    rows = [step(32768, count, gpu) for count in (1, 8, 16)]
    assert rows == sorted(rows) and rows[-1] < 16 * rows[0]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_no_step_is_faster_than_its_bytes(gpu):
    taken = Rows(32767, 1, prompt=False)
    launches = launches_of(CONFIG, "int4", 128, taken, MODEL.sparse, wanted=1)
    times = times_of(launches, MODEL, taken, gpu)
    assert seconds_of(times) > sum(time.moved for time in times.values()) / (gpu.bandwidth * REACHED)


def test_a_prompt_has_the_launches_of_many_rows():
    taken = Rows(32768, 2048, prompt=True)
    launches = launches_of(CONFIG, "int4", 128, taken, MODEL.sparse, wanted=0)
    names = {launch.kernel.partition(".")[0] for launch in launches}
    assert {"dequantize", "dense", "attention", "scores", "selection"} <= names and "linear" not in names
    times = times_of(launches, MODEL, taken, ORIN)
    assert times["dequantize.int4.g128"].moved == 32 * 236_978_176 * (2 + 33 / 64)
    assert 0 < seconds_of(times) < 60


def test_the_limits_of_a_launch():
    work = Work(programs=1600, steps=1000, memory=1e6)
    assert time_of(work, some_code(), ORIN).limit == "issue"
    assert time_of(replace(work, steps=0), some_code(), ORIN).limit == "memory"
    assert time_of(replace(work, steps=0), some_code(shared=64), ORIN).limit == "in flight"
    assert time_of(replace(work, steps=0, asked=1e10), some_code(), ORIN).limit == "L2"
    assert time_of(replace(work, programs=1), some_code(), ORIN).limit == "latency"
    counted = replace(some_code(), loop=Part(100, 10**6, 0))
    assert time_of(work, counted, ORIN).limit == "tensor cores"


def test_how_many_programs_a_multiprocessor_holds():
    limits = {"registers": 65536, "shared": 164 << 10, "warps": 48, "blocks": 16}
    assert some_code(registers=40, shared=0).programs(**limits) == 12  # by warps: 48 / 4
    assert some_code(registers=238, shared=0).programs(**limits) == 2  # by registers
    assert some_code(registers=40, shared=52224).programs(**limits) == 3  # by shared memory
    assert some_code(registers=255, shared=200 << 10).programs(**limits) == 1


def test_the_loops_of_a_listing():
    lines, (loop,) = parts_of(LISTING)
    assert len(lines) == 8 and len(loop) == 4
    assert Part.of(loop) == Part(4, 16 * 8 * 16, (16 + 2) * 32)
    assert (Part.of(lines) - Part.of(loop)).instructions == 4
