"""What a network is: its shape, rotary positions and tensors, and how other people's formats describe it."""

from edge.config.network import KVChoice, KVType, ModelConfig, RopeConfig, RopeType, SparseConfig

__all__ = ["KVChoice", "KVType", "ModelConfig", "RopeConfig", "RopeType", "SparseConfig"]
