"""The errors that a user can mend; every message is one sentence that names what is wrong and what to do."""

_LONGEST = 2000  # characters of a message


class EdgeError(Exception):
    """Base of all errors raised on purpose; command-line tools print it without a traceback.

    `str` gives the sentence as `readable` does: what it quotes may come from a file that somebody else wrote.
    """

    def __str__(self) -> str:
        return readable(super().__str__())


def readable(text: str) -> str:
    r"""Text for a message on one line: control characters as escapes (`\x1b`), the middle of a very long one
    left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 3 // 4]} [...] {text[-_LONGEST // 4 :]}"
    text = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class WrongTypeError(EdgeError, TypeError):
    """An argument of the Python API has a type that means nothing there."""


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


class TrainingError(EdgeError):
    """A training run cannot start or go on: its settings, its processes or its checkpoints forbid it."""
