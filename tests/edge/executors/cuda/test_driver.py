"""The driver's side of a device: order of calls, arguments as they arrive, failures in words.

All of it runs on a stand-in for libcuda that computes nothing (`stub_libcuda.c`): what a real GPU does is not
tested here.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ContextError, EdgeError, NativeError
from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.libcuda import LIBRARY_VARIABLE, MissingDriverError
from tests.edge.executors.cuda.conftest import Stub

Package = Callable[..., Path]
HALF = 4 << 20  # of the pinned memory


def arguments(gpu: CudaDevice, **changes: Any) -> list[Any]:
    """What `scale.f16` takes."""
    given = {"source": 0x1230, "to": 0x4560, "columns": -3, "offset": 1 << 40, "scale": 0.5, **changes}
    return list(given.values())


def test_without_a_driver_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, "libcuda-that-is-not-there.so.1")
    with pytest.raises(
        MissingDriverError, match=r"^There is no NVIDIA driver here \(.*not-there.*\); install"
    ):
        CudaDevice()


def test_this_machine_has_a_gpu_or_a_sentence(monkeypatch: pytest.MonkeyPatch):
    """The real driver, if there is one."""
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    try:
        found = CudaDevice()
    except NativeError as error:
        assert str(error).startswith(("There is no NVIDIA driver", "The NVIDIA driver", "Starting CUDA"))
    else:
        assert found.facts.architecture >= 50
        found.close()


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ("cuInit=100", r"The NVIDIA driver finds no GPU 0 \(CUDA_VISIBLE_DEVICES is '3'\); choose one"),
        ("cuInit=34", "The libcuda.so.1 that the loader finds is a stand-in for compiling"),
        ("cuInit=999", r"Starting CUDA failed: unknown error \(CUDA_ERROR_UNKNOWN\)\."),
        (
            "cuDevicePrimaryCtxRetain=2",
            r"Opening the GPU failed: a short reason \(CUDA_ERROR_OUT_OF_MEMORY\)\.",
        ),
        ("cuStreamCreate=46", r"Making a queue failed: a short reason \(error 46\)\."),
        ("cuMemHostAlloc=2", "Allocating pinned memory failed"),
    ],
)
def test_a_gpu_that_can_not_be_opened(stub: Stub, monkeypatch: pytest.MonkeyPatch, fail: str, sentence: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    stub.set(fail=fail)
    with pytest.raises(NativeError, match=f"^{sentence}"):
        CudaDevice()
    assert stub.live == 0


def test_a_gpu_that_is_not_there(stub: Stub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(NativeError, match=r"^The NVIDIA driver finds no GPU 1; choose"):
        CudaDevice(ordinal=1)


def test_a_driver_without_a_function(monkeypatch: pytest.MonkeyPatch):
    """The C library stands for a driver of long ago."""
    monkeypatch.setenv(LIBRARY_VARIABLE, "libc.so.6")
    with pytest.raises(NativeError, match=r"^The NVIDIA driver is too old: it lacks cu\w+; update it\.$"):
        CudaDevice()


def test_what_the_gpu_is(stub: Stub):
    stub.set(architecture=110, integrated=1, memory=5 << 30, shared=227 << 10, gpus=3, driver=13020)
    gpu = CudaDevice(ordinal=2)
    facts = gpu.facts
    assert (facts.name, facts.architecture, facts.memory) == ("Stub 2", 110, 5 << 30)
    assert (facts.multiprocessors, facts.shared_memory, facts.integrated) == (8, 227 << 10, True)
    assert gpu.driver_version == 13020
    gpu.close()


def test_free_memory(stub: Stub, monkeypatch: pytest.MonkeyPatch):
    """Of a Jetson the system knows what could be freed, and never more than there is."""
    monkeypatch.setattr("edge.executors.cuda.driver.available_memory", lambda: 900)
    for integrated, total, wanted in ((0, 1000, 700), (1, 1000, 900), (1, 800, 800)):
        stub.set(integrated=integrated, memory=total)
        gpu = CudaDevice()
        gpu.allocate(300)
        assert gpu.free_memory == wanted
        gpu.close()


def test_memory_is_zero_and_comes_back(gpu: CudaDevice, stub: Stub):
    before = stub.live
    address = gpu.allocate(1000)
    found = np.ones(1000, np.uint8)
    gpu.download(address, found)
    assert address % 256 == 0 and not found.any()
    assert gpu.allocate(0)
    gpu.free(address)
    gpu.free(0)
    assert stub.live == before + 1


def test_no_room(stub: Stub):
    stub.set(memory=3000)
    gpu = CudaDevice()
    gpu.allocate(1000)
    with pytest.raises(ContextError, match=r"no room for 2\.50 kB: 2\.00 kB of 3\.00 kB are free; choose"):
        gpu.allocate(2500)
    gpu.close()


def test_copies_keep_their_order_and_sources_may_change(gpu: CudaDevice, stub: Stub):
    """The stand-in copies when somebody waits: what is in pinned memory then is what arrives."""
    random = np.random.default_rng(1)
    sizes = (5, HALF - 256, 3 * HALF + 7, 1, HALF)
    sent = [random.integers(0, 256, size, np.uint8) for size in sizes]
    addresses = [gpu.allocate(size) for size in sizes]
    for values, address in zip(sent, addresses, strict=True):
        changing = values.copy()
        gpu.upload(address, changing)
        changing[:] = 0
    assert stub.queued
    copied = gpu.allocate(sizes[2])
    gpu.copy(copied, addresses[2], sizes[2])
    gpu.upload(addresses[2], np.zeros(sizes[2], np.uint8))
    for values, address in (
        *zip(sent[:2], addresses[:2], strict=True),
        (sent[2], copied),
        (sent[4], addresses[4]),
    ):
        found = np.empty_like(values)
        gpu.download(address, found)
        assert np.array_equal(found, values)
    assert not stub.queued


def test_strided_and_empty_arrays(gpu: CudaDevice):
    values = np.arange(24, dtype=np.int32).reshape(4, 6)
    address = gpu.allocate(values.nbytes)
    gpu.upload(address, values[:, ::2])
    gpu.upload(address, values[:0])
    found = np.empty((4, 3), np.int32)
    gpu.download(address, found)
    gpu.download(address, found[:0])
    assert np.array_equal(found, values[:, ::2])


def test_a_kernel_gets_its_arguments_and_two_null_scratch_pointers(gpu: CudaDevice, stub: Stub):
    gpu.launch("scale.f16", (3, 2, 1), arguments(gpu))
    assert not any(line.startswith("run") for line in stub.log)
    gpu.synchronize()
    half = struct.unpack("<I", struct.pack("<f", 0.5))[0]
    assert stub.log == [
        "load CUBIN 87 scale 8 8 4 8 4 8 8",
        f"run scale grid 3 2 1 block 128 1 1 shared 0 with 1230 4560 fffffffd {1 << 40:x} {half:x} 0 0",
    ]


def test_a_kernel_is_loaded_once_and_arguments_are_of_their_launch(gpu: CudaDevice, stub: Stub):
    for columns in (1, np.int64(2), 3):
        gpu.launch("scale.f16", (columns, 1, 1), arguments(gpu, columns=columns))
    gpu.synchronize()
    assert len(stub.log) == 4
    assert [line.split()[-5] for line in stub.log[1:]] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"more": 1}, r"scale\.f16 takes 5 arguments \(source, to, columns, offset, scale\), got 6\."),
        ({"to": 0x4561}, r"scale\.f16 takes a multiple of 16 as to, got 17761\."),
        ({"to": -16}, r"scale\.f16 takes a number from 0 to \d+ as to, got -16\."),
        ({"columns": 2**31}, r"scale\.f16 takes a number from -2147483648 to 2147483647 as columns"),
        ({"columns": 1.0}, r"scale\.f16 takes a whole number as columns, got 1\.0\."),
        ({"offset": 24}, r"scale\.f16 takes a multiple of 16 as offset, got 24\."),
    ],
)
def test_arguments_that_do_not_fit(stub: Stub, package: Package, changes: dict[str, object], sentence: str):
    package(aligned=("offset",))
    gpu = CudaDevice()
    with pytest.raises(NativeError, match=f"^{sentence}"):
        gpu.launch("scale.f16", (1, 1, 1), arguments(gpu, **changes))
    gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))
    gpu.close()
    assert len(stub.log) == 2


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 2**16, 1), (2**31, 1, 1), (1, 1, -1)])
def test_grids_that_do_not_fit(gpu: CudaDevice, grid: tuple[int, int, int]):
    with pytest.raises(NativeError, match=r"^scale\.f16 can't be launched as \(.*\) programs\.$"):
        gpu.launch("scale.f16", grid, arguments(gpu))


def test_much_shared_memory_is_asked_for(stub: Stub, package: Package):
    package(shared=100 << 10)
    gpu = CudaDevice()
    gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))
    gpu.close()
    assert f"shared {100 << 10} with" in stub.log[-1]
    stub.set(shared=99 << 10)
    gpu = CudaDevice()
    with pytest.raises(
        NativeError, match=r"scale\.f16 needs 102400 bytes of shared memory.*have 101376 on this"
    ):
        gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))
    gpu.close()


def test_a_launch_that_fails_names_the_kernel(gpu: CudaDevice, stub: Stub):
    stub.set(fail="cuLaunchKernel=701")
    with pytest.raises(
        NativeError, match=r"^Launching the kernel scale\.f16 failed: a short reason \(error 701\)"
    ):
        gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))


@pytest.mark.parametrize("then", ["synchronize", "download", "upload", "launch", "copy"])
def test_a_kernel_that_fails_is_named_by_whoever_notices(stub: Stub, package: Package, then: str):
    package()
    gpu = CudaDevice()
    address = gpu.allocate(16)
    values = np.zeros(4, np.int32)
    calls: dict[str, Callable[[], None]] = {
        "synchronize": gpu.synchronize,
        "download": lambda: gpu.download(address, values),
        "upload": lambda: gpu.upload(address, values),
        "launch": lambda: gpu.launch("scale.f16", (1, 1, 1), arguments(gpu)),
        "copy": lambda: gpu.copy(address, address + 8, 8),
    }
    stub.set(fail_run=700)
    gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))
    if then in ("upload", "launch", "copy"):  # they do not wait; another wait has met the failure
        gpu._cuda.functions["cuStreamSynchronize"](gpu._stream)
        stub.set(fail="cuCtxSetCurrent=0")  # which reports no earlier failure
    with pytest.raises(
        NativeError,
        match=r"^Work on the GPU failed, an illegal memory access was encountered "
        r"\(CUDA_ERROR_ILLEGAL_ADDRESS\), in one of the kernels since the last wait \(scale\.f16\); start "
        r"again with CUDA_LAUNCH_BLOCKING=1",
    ):
        calls[then]()
    gpu.close()
    assert stub.live == 0


def test_a_graph_runs_what_was_recorded(gpu: CudaDevice, stub: Stub):
    """With the arguments of then; recording loads the kernel and runs nothing."""
    source, to = gpu.allocate(16), gpu.allocate(16)
    gpu.upload(source, np.arange(4, dtype=np.int32))

    def work() -> None:
        gpu.launch("scale.f16", (1, 1, 1), arguments(gpu, columns=5))
        gpu.copy(to, source, 16)

    graph = gpu.record(work)
    gpu.synchronize()
    assert [line.split()[0] for line in stub.log] == ["load"]
    gpu.launch("scale.f16", (1, 1, 1), arguments(gpu, columns=6))
    graph.launch()
    graph.launch()
    found = np.zeros(4, np.int32)
    gpu.download(to, found)
    assert found.tolist() == [0, 1, 2, 3]
    runs = [line.split()[-5] for line in stub.log if line.startswith("run")]
    assert runs == ["6", "5", "5"] and stub.log.count("graph of 2") == 2
    before = stub.live
    graph.close()
    graph.close()
    assert stub.live == before - 1
    with pytest.raises(NativeError, match="graph of launches is closed"):
        graph.launch()


def test_a_failed_graph_names_its_kernels(stub: Stub, package: Package):
    package()
    gpu = CudaDevice()
    graph = gpu.record(lambda: gpu.launch("scale.f16", (1, 1, 1), arguments(gpu)))
    stub.set(fail_run=700)
    graph.launch()
    with pytest.raises(NativeError, match=r"wait \(scale\.f16\)"):
        gpu.synchronize()
    gpu.close()


@pytest.mark.parametrize("what", ["allocate", "free", "upload", "download", "record", "synchronize", "timed"])
def test_what_can_not_be_recorded(gpu: CudaDevice, stub: Stub, what: str):
    address, values = gpu.allocate(16), np.zeros(4, np.int32)
    calls: dict[str, Callable[[], object]] = {
        "allocate": lambda: gpu.allocate(16),
        "free": lambda: gpu.free(address),
        "upload": lambda: gpu.upload(address, values),
        "download": lambda: gpu.download(address, values),
        "record": lambda: gpu.record(lambda: None),
        "synchronize": gpu.synchronize,
        "timed": lambda: gpu.timed(lambda: None),
    }
    before = stub.live
    with pytest.raises(
        NativeError, match=r"^Nothing can be \w+( \w+)? on the GPU while launches are recorded\.$"
    ):
        gpu.record(lambda: calls[what]() and None)
    assert stub.live == before
    gpu.free(address)
    gpu.synchronize()


def test_time_is_between_two_events(gpu: CudaDevice, stub: Stub):
    before = stub.live
    seconds = gpu.timed(lambda: gpu.launch("scale.f16", (1, 1, 1), arguments(gpu)))
    assert seconds == pytest.approx(0.0015) and stub.log[-1].startswith("run")
    assert stub.live == before + 1  # the loaded kernel


def test_closing_frees_everything(stub: Stub, package: Package):
    package()
    gpu = CudaDevice()
    gpu.allocate(100)
    gpu.record(lambda: gpu.launch("scale.f16", (1, 1, 1), arguments(gpu)))
    assert stub.live > 7
    gpu.close()
    gpu.close()
    assert stub.live == 0
    with pytest.raises(NativeError, match=r"^The GPU is closed\.$"):
        gpu.synchronize()


def test_other_threads_can_use_it(gpu: CudaDevice, stub: Stub):
    """A context belongs to a thread; the stand-in refuses those that did not take it."""
    failures = []

    def work() -> None:
        try:
            gpu.launch("scale.f16", (1, 1, 1), arguments(gpu))
            gpu.synchronize()
        except EdgeError as error:
            failures.append(error)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert not failures and sum(line.startswith("run") for line in stub.log) == 2


def test_a_forked_process_is_refused(gpu: CudaDevice, stub: Stub):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion here: pytest must not go on twice
        said = ""
        try:
            gpu.synchronize()
        except NativeError as error:
            said = str(error)
        before = stub.live
        gpu.close()
        os.write(theirs, f"{said} {before - stub.live}".encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    assert said.startswith("This process was forked from the one that opened the GPU") and said.endswith(" 0")
    gpu.synchronize()
