"""GGUF: llama.cpp's file, with the exported weights bit for bit."""
