"""The error of everything between a text and a batch."""

from edge.errors import EdgeError


class DataError(EdgeError):
    """A text, a folder of token shards, a loader's plan or its state cannot be used."""
