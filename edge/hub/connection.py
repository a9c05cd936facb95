"""Talking to the Hugging Face hub: its client's errors as sentences, its bars, and what is in its cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import CheckpointError, EdgeError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_TIMEOUT = 15.0  # seconds until the hub counts as out of reach


@dataclass(frozen=True)
class HubModel:
    """A repository on the hub. revision: a branch, tag or commit, None for the main branch."""

    repo: str
    revision: str | None = None

    @property
    def label(self) -> str:
        """Its name in sentences: what a person types, with the revision that was asked for."""
        return self.named(None)

    def named(self, file: str | None) -> str:
        """The same for one of its files."""
        name = self.repo if file is None else f"{self.repo}:{file}"
        return name if self.revision is None else f"{name}@{self.revision}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision never changes, so that nobody needs to ask for news of it."""
        return re.fullmatch("[0-9a-f]{40}", self.revision or "") is not None

    def ask(self) -> ModelInfo:
        """What the hub says about it, the names of its files among that."""
        from huggingface_hub import HfApi

        return HfApi().model_info(self.repo, revision=self.revision, timeout=_TIMEOUT)


def is_offline(offline: bool) -> bool:
    """Whether the hub must not be asked, by an option or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def cached_snapshot(model: HubModel, patterns: list[str]) -> tuple[Path | None, bool]:
    """The folder of an earlier download, None if there is none; and whether the hub's client thinks that it
    has every file of these patterns.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            model.repo, revision=model.revision, allow_patterns=patterns, local_files_only=True
        )
    except HFValidationError:
        return None, False
    except LocalEntryNotFoundError as error:
        # Newer versions compare a snapshot with the hub's list of files and name the incomplete one.
        part = getattr(error, "snapshot_path", None)
        return (None if part is None else Path(part)), False
    return Path(path), True


def needs_network(model: HubModel, file: str | None, state: str) -> CheckpointError:
    """The refusal of a download in offline mode; state: what is missing."""
    return CheckpointError(
        f"'{model.named(file)}' {state} and offline mode is on; run once online (without --offline and "
        "HF_HUB_OFFLINE)."
    )


class Attempt:
    """Why the hub was out of reach."""

    reason = ""
    error: BaseException | None = None

    def failure(self, name: str) -> CheckpointError:
        """The sentence for a download that nothing earlier can serve for."""
        from huggingface_hub import constants

        return CheckpointError(
            f"Cannot reach {constants.ENDPOINT} to download '{name}' ({self.reason}); check the network, or "
            "name a local folder or GGUF file instead."
        )


@contextmanager
def connected(model: HubModel, progress: bool) -> Iterator[Attempt]:
    """Turn huggingface_hub's errors into sentences; one that means no connection is kept and swallowed.

    progress: let it draw its bars on stderr if that is a terminal.
    """
    from huggingface_hub import constants, errors

    attempt, repo = Attempt(), model.repo
    try:
        with _bars(progress and sys.stderr.isatty()):
            yield attempt
    except EdgeError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"'{repo}' is gated: accept its terms on {constants.ENDPOINT}/{repo} and log in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"'{repo}' on the hub has no revision '{model.revision}'.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model '{repo}' on the hub, or it is private; check the name, or log in with "
            "`hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"'{repo}' is not a valid hub id; it looks like organisation/name.") from error
    except errors.HfHubHTTPError as error:
        attempt.reason, attempt.error = f"HTTP status {_status(error)}", error
    except OSError as error:
        if error.filename is not None:  # a file of the hub's cache, not a connection
            raise CheckpointError(
                f"Cannot write '{error.filename}' ({error.strerror}); free some space or set HF_HOME to "
                "another folder."
            ) from error
        attempt.reason, attempt.error = type(error).__name__, error
    except Exception as error:  # which HTTP client's exceptions these are depends on the hub's version
        attempt.reason, attempt.error = type(error).__name__, error


def _status(error: Any) -> str:
    return str(getattr(error.response, "status_code", "unknown"))


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub import utils

    hidden_before = utils.are_progress_bars_disabled()
    if not shown and not hidden_before:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not hidden_before:
            utils.enable_progress_bars()
