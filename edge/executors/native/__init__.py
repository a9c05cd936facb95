"""The native library: found, opened and typed."""
