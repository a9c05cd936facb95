"""Who may ask: those with a key, if there are keys, and only programs and pages that mean this server.

A page on the web can make a browser send requests to this machine. What a browser adds to those tells: the
name of the host (a name that an attacker lets point here is none of ours) and the origin of the page.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge.apps.serve.errors import ApiError
from edge.errors import EdgeError

Scope = Mapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
_SHORTEST = 8


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Digests of the keys in a file, one a line; `#` begins a remark."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EdgeError(f"The file of API keys '{path}' can't be read: {reason}.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise EdgeError(f"The file of API keys '{path}' has none: write one a line.")
    if any(len(key) < _SHORTEST or not key.isprintable() or " " in key for key in keys):
        raise EdgeError(f"The keys in '{path}' must be words of {_SHORTEST} characters or more.")
    return tuple(_digest(key.encode()) for key in keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header of a request; None without it."""
    return next((value for key, value in scope["headers"] if key == name), None)


def check_key(keys: Sequence[bytes], scope: Scope) -> None:
    """Raise ApiError unless a request has one of the keys; takes the same time for all wrong ones."""
    if not keys:
        return
    bearer = header(scope, b"authorization") or b""
    sent = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else header(scope, b"x-api-key") or b""
    found = False
    for key in keys:
        found |= hmac.compare_digest(key, _digest(sent))
    if not found:
        what = "The API key is wrong" if sent else "An API key is missing"
        raise ApiError(
            401,
            f"{what}: send one of the server's keys as 'Authorization: Bearer KEY'.",
            "authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(scope: Scope) -> None:
    """Raise ApiError for a request that was meant for another name than those of this machine."""
    try:
        host = urlsplit(f"//{(header(scope, b'host') or b'').decode('ascii')}").hostname or ""
    except ValueError:
        host = ""
    if not is_loopback(host):
        raise ApiError(
            403,
            "This server answers requests to localhost and 127.0.0.1 only; start it with --host to use "
            "another name.",
            "permission_error",
            code="host_not_allowed",
        )


def check_origin(allowed: Collection[str], scope: Scope) -> None:
    """Raise ApiError for a request of a web page that is neither our own nor of an allowed origin."""
    origin = (header(scope, b"origin") or b"").decode("latin-1")
    if not origin or "*" in allowed or origin in allowed:
        return
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        host = ""
    if not host or host.encode() != header(scope, b"host"):
        raise ApiError(
            403,
            f"Web pages of {origin[:100]} may not use this server: start it with --cors and this origin.",
            "permission_error",
            code="origin_not_allowed",
        )
