"""The process of a server: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.apps.serve.app import make_app
from edge.apps.serve.connections import connection_type
from edge.apps.serve.keys import is_loopback, read_keys
from edge.apps.serve.options import ServeOptions
from edge.apps.serve.state import Served
from edge.errors import EdgeError
from edge.system.notices import notice

_BACKLOG = 512
_KEEP_ALIVE = 75  # seconds that a connection may be idle
_LAST_WORDS = 5  # seconds in which clients are told that their answers have been ended
_FEW_WORDS = 1  # the same after a second signal


def serve(served: Served, keys: tuple[bytes, ...], listener: socket.socket) -> None:
    """Answer until a signal (SIGTERM, SIGINT) says otherwise; then let answers end, as `--drain` says."""
    import uvicorn

    options = served.options
    unix = listener.family == getattr(socket, "AF_UNIX", None)
    only_local = not unix and is_loopback(listener.getsockname()[0])
    config = uvicorn.Config(
        make_app(served, keys, only_local=only_local),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # it would wake the process every second
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(options.drain) + _LAST_WORDS,
        ws="none",
        http=connection_type(options.time_limit, _KEEP_ALIVE),
        loop="auto",  # uvloop where it is installed: a third less of this thread's time a token
    )
    for name in ("uvicorn.error", "asyncio"):
        served.log.take_over(name)

    class Server(uvicorn.Server):
        """Sleeps until it is told to end; a second signal ends at once."""

        async def main_loop(self) -> None:
            self._told = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            served.log.write("listening", at=address_of(listener), model=served.name)
            if not self.should_exit:
                await self._told.wait()
            served.is_draining = True
            served.log.write("draining", seconds=options.drain, **vars(served.driver.load))
            self._loop.call_later(options.drain, served.driver.stop)

        def handle_exit(self, sig: int, frame: Any) -> None:
            again, self.should_exit = self.should_exit, True
            with suppress(AttributeError, RuntimeError):  # before the loop, and after it
                self._loop.call_soon_threadsafe(self._end_now if again else self._told.set)

        def _end_now(self) -> None:
            served.driver.stop()
            self._loop.call_later(_FEW_WORDS, setattr, self, "force_exit", True)

    try:
        Server(config).run(sockets=[listener])
    finally:
        if options.unix_socket is not None:
            options.unix_socket.unlink(missing_ok=True)
        served.close()
    served.log.write("stopped")


def keys_of(options: ServeOptions) -> tuple[bytes, ...]:
    """The server's keys. A server that others can reach and that has none is worth a notice."""
    keys = () if options.api_keys is None else read_keys(options.api_keys)
    if not keys and options.unix_socket is None and not is_loopback(options.host):
        notice(
            f"Everybody who reaches {options.host}:{options.port} may use this server: give it keys with "
            "--api-keys, or listen at 127.0.0.1."
        )
    return keys


def listen(options: ServeOptions) -> socket.socket:
    """The socket; EdgeError where there can be none."""
    if options.unix_socket is not None:
        return _unix(options.unix_socket)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdgeError(
            f"Can't listen at {options.host}:{options.port} ({reason}): choose another --host or --port."
        ) from None
    return listener


def _unix(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise EdgeError("This system has no Unix sockets: leave out --unix-socket.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise EdgeError(f"Can't listen at the Unix socket '{path}' ({error.strerror or error}).") from None
    return listener


def _remove_dead(path: Path) -> None:
    """Remove a socket at which nobody listens any more."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise EdgeError(f"'{path}' exists and is no socket: choose another --unix-socket.")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise EdgeError(f"Another server listens at '{path}': choose another --unix-socket.")


def address_of(listener: socket.socket) -> str:
    """What a client types."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"
