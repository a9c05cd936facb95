"""What is called of the driver has the names, arguments and numbers of `cuda.h`, as Triton brings it."""

from __future__ import annotations

import importlib.util
import re
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest

from edge.executors.cuda import libcuda

HANDLES = ("context", "stream", "event", "module", "function", "graph", "graphExec")
ENUMS = ("result", "device", "device_attribute", "function_attribute", "streamCaptureMode", "jit_option")
TYPES: dict[str, Any] = {
    **{f"CU{name}": c_void_p for name in HANDLES},
    **{f"CU{name}": c_int for name in ENUMS},
    **{"int": c_int, "unsigned int": c_uint, "unsigned char": c_ubyte, "unsigned long long": c_uint64},
    **{"size_t": c_size_t, "float": c_float, "CUdeviceptr": c_uint64, "char *": c_char_p, "void *": c_void_p},
}
OLDER = {"cuEventElapsedTime"}  # whose next version only drivers from 12.8 on have
CONSTANTS = {
    "CUDA_ERROR_OUT_OF_MEMORY": libcuda.OUT_OF_MEMORY,
    "CUDA_ERROR_STUB_LIBRARY": libcuda.STUB_LIBRARY,
    "CUDA_ERROR_NO_DEVICE": libcuda.NO_DEVICE,
    "CUDA_ERROR_INVALID_DEVICE": libcuda.INVALID_DEVICE,
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND": libcuda.JIT_COMPILER_NOT_FOUND,
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": libcuda.LAUNCH_OUT_OF_RESOURCES,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": libcuda.COMPUTE_CAPABILITY[0],
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": libcuda.COMPUTE_CAPABILITY[1],
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": libcuda.MULTIPROCESSORS,
    "CU_DEVICE_ATTRIBUTE_INTEGRATED": libcuda.INTEGRATED,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": libcuda.SHARED_MEMORY,
    "CU_STREAM_NON_BLOCKING": libcuda.NON_BLOCKING,
    "CU_STREAM_CAPTURE_MODE_RELAXED": libcuda.CAPTURE_RELAXED,
    "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": libcuda.MAX_DYNAMIC_SHARED,
    "CU_JIT_ERROR_LOG_BUFFER": libcuda.ERROR_LOG,
    "CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES": libcuda.ERROR_LOG_SIZE,
    "CU_EVENT_DISABLE_TIMING": libcuda.EVENT_WITHOUT_TIMING,
}


@pytest.fixture(scope="module")
def header() -> str:
    """The text of cuda.h; Triton itself is not imported."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        pytest.skip("triton, which has cuda.h, is not installed (pip install triton==3.9.0)")
    return Path(found.origin).with_name("backends").joinpath("nvidia/include/cuda.h").read_text()


def python_type(parameter: str) -> Any:
    """Of `size_t *bytes` and the like."""
    text = re.sub(r"\bconst\b", "", parameter).replace("*", " * ")
    *words, _ = text.split()
    kind = " ".join(words)
    if kind in TYPES:
        return TYPES[kind]
    assert kind.endswith(" *"), parameter
    return POINTER(TYPES[kind.removesuffix(" *")])


@pytest.mark.parametrize("name", libcuda._FUNCTIONS)
def test_functions_are_those_of_the_header(header: str, name: str):
    renamed = dict(re.findall(r"#define\s+(cu\w+)\s+(?:__CUDA_API_PTSZ\()?(cu\w+)", header))
    assert renamed.get(name, name) == name or name in OLDER, f"the header says {renamed[name]}"
    (plain,) = [each for each, real in renamed.items() if real == name] or [name]
    declared = re.search(rf"CUresult CUDAAPI {plain}\(([^)]*)\);", header)
    assert declared
    wanted = [python_type(each) for each in declared[1].split(",")]
    given = list(libcuda._FUNCTIONS[name][1])
    if name == "cuModuleLoadDataEx":  # an image, which may be text
        given[1] = c_void_p if given[1] is c_char_p else None
    assert given == wanted


@pytest.mark.parametrize("name", CONSTANTS)
def test_numbers_are_those_of_the_header(header: str, name: str):
    found = re.search(rf"\b{name}\s*=\s*(0x[0-9a-f]+|\d+)", header)
    assert found and int(found[1], 0) == CONSTANTS[name]
