"""Runs exported folders on ExecuTorch."""
