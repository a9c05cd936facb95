"""ONNX: a graph with this project's operators, or one of ONNX Runtime's own."""
