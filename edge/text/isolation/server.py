"""The process that runs foreign code: requests and answers are lines of JSON; it ends with its input."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, BinaryIO

from edge.errors import EdgeError

try:
    import resource
except ImportError:  # Windows has no such limits: there the time is the only one
    resource = None  # type: ignore[assignment]

MEMORY_BYTES = 1 << 30
BYTES_PER_CHARACTER = 256
"""Of a request, in addition. Encoding takes some 200 bytes of memory for each character of a long text."""
OUT_OF_MEMORY = 3
"""Exit status. After a failed allocation nothing is sure any more, so the process ends."""
_MAX_MESSAGE = 300
_ORPHAN_SECONDS = 2


def serve(module: str) -> None:
    """Answer requests with the methods of `Program` in `module`, until the input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not write between the answers
    try:
        _limit_memory(0)
        program = import_module(module).Program()
        _send(replies, {"value": None})
        for line in requests:
            request = json.loads(line)
            _limit_memory(0 if request["method"] == "open" else len(line))
            _send(replies, _answer(program, request))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _answer(program: Any, request: dict[str, Any]) -> dict[str, Any]:
    # The parent watches the time; this is for a process whose parent was killed.
    faulthandler.dump_traceback_later(request["seconds"] + _ORPHAN_SECONDS, exit=True)
    try:
        return {"value": getattr(program, request["method"])(**request["arguments"])}
    except MemoryError:
        raise
    except EdgeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:  # a panic of Rust code is no Exception
        return {"failure": one_line(error)}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _limit_memory(characters: int) -> None:
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = MEMORY_BYTES + BYTES_PER_CHARACTER * characters
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS may refuse a limit below what it has mapped
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def one_line(error: object) -> str:
    """What an error says, for a sentence: printable, and not longer than a line or two."""
    text = "".join(c if c.isprintable() else " " for c in str(error)[: 4 * _MAX_MESSAGE])
    return " ".join(text.split())[:_MAX_MESSAGE].rstrip(".") or type(error).__name__
