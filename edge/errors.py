"""The errors that a user can mend; every message is one sentence that names what is wrong and what to do.

What a user should know though the model runs is an EdgeWarning, made by `note`.
"""

import warnings


class EdgeError(Exception):
    """Base of all errors raised on purpose; command-line tools print it without a traceback."""


class ConfigError(EdgeError):
    """A model configuration has a missing, contradictory or unsupported field."""


class CheckpointError(EdgeError):
    """A source checkpoint cannot be read, or its tensors contradict its configuration."""


class BundleError(EdgeError):
    """A bundle is truncated, altered, newer than this program, or not a bundle at all."""


class TokenizerError(EdgeError):
    """A tokenizer is missing or unsupported, or a text or token id is outside what it knows."""


class NativeError(EdgeError):
    """The native library is missing or refused a call."""


class ContextError(EdgeError):
    """A prompt or a conversation does not fit the context window."""


class ExportError(EdgeError):
    """A model cannot be exported as it was asked for, or the result could not be written or checked."""


class ArtifactError(EdgeError):
    """An exported folder is incomplete, altered, or asks for another runtime version."""


class EdgeWarning(UserWarning):
    """Something odd or contradictory in a model's files and how it was taken; command-line tools print it."""


def note(sentence: str) -> None:
    """Tell the user something through Python's `warnings`, once for each sentence."""
    warnings.warn(sentence, EdgeWarning, stacklevel=2)
