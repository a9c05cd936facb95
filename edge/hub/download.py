"""Downloads checkpoints from the Hugging Face hub, through `huggingface_hub` and its cache.

Only what a checkpoint reader opens is fetched: safetensors (PyTorch files only where there are none),
configuration, tokenizer and chat template. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean
what they mean everywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edge.checkpoints.huggingface import (
    CONFIG,
    GPTQ_CONFIG,
    TOKENIZER_FILES,
    HuggingFaceTexts,
    is_complete,
)
from edge.errors import CheckpointError, EdgeError
from edge.hub.preflight import check_small_files

_SMALL_FILES = (
    CONFIG,
    GPTQ_CONFIG,
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    *TOKENIZER_FILES,
)
_WEIGHTS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
"""Patterns of weight files, the preferred format first."""
_TIMEOUT = 15.0  # seconds until the hub counts as out of reach


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, `organisation/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def download(
    repo: str, *, revision: str | None = None, offline: bool = False, progress: bool = False
) -> Path:
    """The folder with the files of the hub model `repo`, downloaded if they are not in the hub's cache yet.

    revision: a branch, tag or commit, by default the main branch. offline: use the cache alone (as does
    HF_HUB_OFFLINE=1). progress: let huggingface_hub draw its bars on stderr if that is a terminal. When the
    hub cannot be reached, a complete earlier download serves, and for a full commit hash it is not even
    asked. Raises CheckpointError with one sentence for a model or revision that does not exist, a gated
    model, and no network.
    """
    from huggingface_hub import constants

    folder, complete = _cached(repo, revision)
    if offline or constants.HF_HUB_OFFLINE:
        if folder is None or not complete:
            state = "has not been downloaded yet" if folder is None else "was downloaded only in part"
            raise CheckpointError(
                f"'{_label(repo, revision)}' {state} and offline mode is on; run once online (without "
                "--offline and HF_HUB_OFFLINE)."
            )
        return folder
    if folder is not None and complete and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return folder
    with _bars(progress and sys.stderr.isatty()), _sentences(repo, revision) as attempt:
        return _fetch(repo, revision, folder if complete else None)
    if folder is None or not complete:
        raise CheckpointError(
            f"Cannot reach {constants.ENDPOINT} to download '{_label(repo, revision)}' ({attempt.reason}); "
            "check the network, or name a local folder or GGUF file instead."
        ) from attempt.error
    return folder


def _fetch(repo: str, revision: str | None, known: Path | None) -> Path:
    """Download what is missing; known: the folder of an earlier, complete download of this revision."""
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
    if known is not None and known.name == found.sha:  # snapshots are named by their commit
        return known
    files = [sibling.rfilename for sibling in found.siblings or ()]
    if CONFIG not in files:
        raise CheckpointError(f"'{repo}' on the hub has no {CONFIG}; it is not a Hugging Face checkpoint.")
    for patterns in _WEIGHTS:
        if any(fnmatch(file, pattern) for file in files for pattern in patterns):
            small = snapshot_download(repo, revision=revision, allow_patterns=[*_SMALL_FILES])
            check_small_files(HuggingFaceTexts(small))  # before gigabytes come
            wanted = [*_SMALL_FILES, *patterns]
            return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    raise CheckpointError(
        f"'{repo}' on the hub has neither safetensors nor PyTorch weights; download its GGUF file and "
        "name that, or choose another model."
    )


def _cached(repo: str, revision: str | None) -> tuple[Path | None, bool]:
    """The folder of an earlier download, None if there is none, and whether all of it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder: Path | None = None
    for patterns in _WEIGHTS:
        wanted = [*_SMALL_FILES, *patterns]
        try:
            path = snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True)
        except HFValidationError:
            continue
        except LocalEntryNotFoundError as error:
            # Newer versions compare a snapshot with the hub's list of files and name the incomplete one.
            part = getattr(error, "snapshot_path", None)
            folder = folder if part is None else Path(part)
            continue
        folder = Path(path)
        if is_complete(folder):
            return folder, True
    return folder, False


class _Attempt:
    """Why the hub was out of reach."""

    reason = ""
    error: BaseException | None = None


@contextmanager
def _sentences(repo: str, revision: str | None) -> Iterator[_Attempt]:
    """Turn huggingface_hub's errors into sentences; one that means no connection is kept and swallowed."""
    from huggingface_hub import constants, errors

    attempt = _Attempt()
    try:
        yield attempt
    except EdgeError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"'{repo}' is gated: accept its terms on {constants.ENDPOINT}/{repo} and log in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"'{repo}' on the hub has no revision '{revision}'.") from error
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


def _label(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"
