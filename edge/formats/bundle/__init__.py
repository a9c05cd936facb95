"""The bundle: the folder that the runtime maps into memory. See `manifest`, `writer` and `reader`."""
