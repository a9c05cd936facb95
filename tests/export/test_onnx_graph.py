"""The writer of ONNX files: tensors beside the model, shared bytes, and more than 2 GB of them."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

from edge.export.targets.onnx.graph import DATA_FILE, MODEL_FILE, GraphBuilder  # noqa: E402


def test_tensors_beside_the_model(tmp_path):
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    plan = GraphBuilder()
    with GraphBuilder(tmp_path) as graph:
        sizes = []
        for builder in (plan, graph):
            builder.input("x", "float32", ["n", 3])
            builder.tensor("bytes", "uint8", [5], [np.zeros(5, np.uint8)])
            builder.tensor("w", "float32", [3, 4], [weights[:1], weights[1:]])  # in pieces
            builder.same_bytes("rows", "w", [2, 6])
            builder.optional_input("scale", np.array([2.0], np.float32))
            builder.node("MatMul", ["x", "w"], "product")
            builder.node("Mul", ["product", "scale"], "y")
            builder.node("Identity", ["rows"], "again")
            builder.output("y", "float32", ["n", 4])
            builder.output("again", "float32", [2, 6])
            sizes.append(builder.save({"a": "b"}))
    assert sizes[0] == sizes[1] == (tmp_path / MODEL_FILE).stat().st_size
    assert plan.data_bytes == graph.data_bytes == (tmp_path / DATA_FILE).stat().st_size
    assert graph.operators == {"ai.onnx::Identity": 21, "ai.onnx::MatMul": 21, "ai.onnx::Mul": 21}
    onnx.checker.check_model(str(tmp_path / MODEL_FILE))
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE)
    x = np.ones((2, 3), np.float32)
    y, again = session.run(None, {"x": x})
    np.testing.assert_array_equal(y, 2 * x @ weights)
    np.testing.assert_array_equal(again, weights.reshape(2, 6))
    (y,) = session.run(["y"], {"x": x, "scale": np.array([3.0], np.float32)})
    np.testing.assert_array_equal(y, 3 * x @ weights)


def test_a_tensor_of_another_size_is_noticed(tmp_path):
    with GraphBuilder(tmp_path) as graph, pytest.raises(AssertionError, match="size of its shape"):
        graph.tensor("w", "float32", [2], [np.zeros(3, np.float32)])


@pytest.mark.slow
def test_more_than_2_gb(tmp_path):
    """Two tables of 1.2 GB; rows at the ends are found again."""
    rows, piece = 1200, np.zeros((100, 1 << 20), np.uint8)
    with GraphBuilder(tmp_path) as graph:
        graph.input("row", "int64", [1])
        for table in (1, 2):

            def pieces(table: int = table):
                for start in range(0, rows, len(piece)):
                    piece[-1] = table if start + len(piece) == rows else 0
                    yield piece

            graph.tensor(f"table{table}", "uint8", [rows, 1 << 20], pieces())
            graph.node("Gather", [f"table{table}", "row"], f"y{table}")
            graph.output(f"y{table}", "uint8", [1, 1 << 20])
        graph.save({})
    assert (tmp_path / DATA_FILE).stat().st_size > 2**31
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE)
    first, second = session.run(None, {"row": np.array([rows - 1])})
    assert (first == 1).all() and (second == 2).all()
