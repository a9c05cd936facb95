"""Weights into PyTorch and out of it."""
