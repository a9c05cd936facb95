"""Core ML: an .mlpackage of standard operators, sparse attention included."""
