"""ExecuTorch: a .pte with this project's operators, or one for XNNPACK alone."""
