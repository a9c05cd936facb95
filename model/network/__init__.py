"""The network as PyTorch modules: decoder, rotary positions, KV caches, experts."""
