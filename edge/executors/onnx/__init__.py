"""Runs exported folders on ONNX Runtime."""
