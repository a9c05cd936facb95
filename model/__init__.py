"""What the network is: the PyTorch reference that every kernel and export is tested against.

Needs torch (extra `model`); the runtime in `edge` never imports this package.
"""
