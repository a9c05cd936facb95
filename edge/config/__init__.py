"""What a network is: its shape, rotary positions and tensors, and how other people's formats describe it."""

from edge.config.network import KVType, ModelConfig, RopeConfig, RopeType, SparseConfig

__all__ = ["KVType", "ModelConfig", "RopeConfig", "RopeType", "SparseConfig"]
