"""From the name of a model to a bundle: its meaning, downloads, conversion, the store of converted models."""
