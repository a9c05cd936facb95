"""`edge profile`."""
