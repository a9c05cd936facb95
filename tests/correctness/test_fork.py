"""A model that was loaded before a fork, as servers with several processes do it."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from tests.steps import forward


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_loaded_model_answers_in_a_forked_child(open_native, minicpm, make_bundle):
    """The same logits; the parent goes on as well."""
    executor = open_native(make_bundle(minicpm()), threads=2)
    wanted = forward(executor, executor.new_cache(), [5, 6, 7]).logits
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            signal.alarm(120)  # a child that hangs ends
            os.write(writing, forward(executor, executor.new_cache(), [5, 6, 7]).logits.tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = np.frombuffer(pipe.read(), np.float32)
    os.waitpid(process, 0)
    np.testing.assert_array_equal(found, wanted.ravel())
    np.testing.assert_array_equal(forward(executor, executor.new_cache(), [5, 6, 7]).logits, wanted)
