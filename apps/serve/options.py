"""The options of `edge serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError
from edge.system.options import check_options, option
from edge.system.paths import cache_folder

OFF = "off"
"""A `--prefix-folder` that is none."""
_SIZE = re.compile(r"(\d{1,9})\s*(B|kB|KB|MB|GB|)")
_POWERS = {"": 0, "B": 0, "kB": 1, "KB": 1, "MB": 2, "GB": 3}


def size_in_bytes(text: str) -> int:
    """`16MB`, `500 kB` or a number of bytes; EdgeError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise EdgeError(f"'{text}' is not a size such as 16MB or 500kB.")
    return int(found[1]) * 1000 ** _POWERS[found[2]]


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens, whom it answers, and how much it does at once."""

    host: str = option("127.0.0.1", "Listen at this address; 0.0.0.0 for all networks of the machine.")
    port: int = option(8080, "Listen at this port; 0 takes a free one and says which.", least=0, most=65535)
    unix_socket: Path | None = option(
        None, "Listen at this Unix socket, which only its owner may use, in place of an address."
    )
    api_keys: Path | None = option(
        None, "Answer only who sends one of the keys in this file, one a line.", metavar="FILE"
    )
    cors: tuple[str, ...] = option(
        (), "Let web pages of this origin ask, e.g. http://localhost:3000; repeatable.", metavar="ORIGIN"
    )
    alias: tuple[str, ...] = option((), "Another name that clients may call the model by; repeatable.")
    parallel: int = option(4, "Make this many answers at once.", least=1, most=256)
    queue: int = option(16, "Let this many requests wait; more are told to come again (429).", least=0)
    max_request: str = option("16MB", "Refuse larger requests.", metavar="SIZE", check=size_in_bytes)
    time_limit: float = option(600.0, "End a request after so many seconds.", least=1)
    drain: float = option(30.0, "Let answers go on for so many seconds after SIGTERM.", least=0)
    prefix_folder: str | None = option(
        None,
        f"Keep the KV caches of long conversations here; {OFF} keeps none. By default in the cache folder.",
        metavar="FOLDER",
    )
    rest_after: float = option(
        60.0,
        "Give the memory of copied weights back after so many seconds without a request; 0 keeps it. The "
        "next answer reads their file until the copy is there again.",
        least=0,
    )
    log_prompts: bool = option(False, "Write prompts and answers to the log as well.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def most_bytes(self) -> int:
        """Of a request's body."""
        return size_in_bytes(self.max_request)

    @property
    def folder(self) -> Path | None:
        """Where KV caches are kept."""
        if self.prefix_folder is None:
            return cache_folder() / "prefixes"
        return None if self.prefix_folder == OFF else Path(self.prefix_folder)
