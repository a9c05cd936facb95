"""A model that was loaded before a fork, through the C interface (the Python executor refuses a child)."""

from __future__ import annotations

import ctypes
import os
import signal

import numpy as np
import pytest

from edge.executors.native import library as native


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_loaded_model_answers_in_a_forked_child(open_native, minicpm, make_bundle):
    """The same logits, on threads of its own; the parent goes on as well."""
    executor = open_native(make_bundle(minicpm()), threads=2)
    tokens = np.array([5, 6, 7], np.int32)

    def logits() -> np.ndarray:
        out = np.empty(executor.config.vocab_size, np.float32)
        cache = executor.new_cache() if os.getpid() == parent else spare
        step = native.Step(
            size=ctypes.sizeof(native.Step),
            **{"n": 3, "cache": cache.handle, "tokens": tokens.ctypes.data, "logits_count": 1},
        )
        native.check(native.library().edge_forward(executor.handle, ctypes.byref(step), 1, out.ctypes.data))
        return out

    parent, spare = os.getpid(), executor.new_cache()
    wanted = logits()
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            signal.alarm(120)  # a child that hangs ends
            os.write(writing, logits().tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = np.frombuffer(pipe.read(), np.float32)
    os.waitpid(process, 0)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(logits(), wanted)
