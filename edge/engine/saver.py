"""A thread that makes room in a prefix cache and gives long sequences their files, while answers are made."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

from edge.engine.prefix_cache import PrefixCache

_NICENESS = 10  # what is computed meanwhile comes first


class Saver:
    """So that answers need not wait for a disk, and that a process that is killed leaves what it has computed
    behind. Sleeps until it is told.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes
        self._changed = threading.Condition()
        self._told = self._closing = False
        self._thread = threading.Thread(target=self._run, name="edge-saver", daemon=True)
        self._thread.start()
        prefixes.attend(self.tell)

    def tell(self) -> None:
        """Something has been put into the cache; returns at once."""
        with self._changed:
            self._told = True
            self._changed.notify()

    def close(self, patience: float) -> bool:
        """End the thread, after the file that it writes.

        patience: seconds to wait for that. Returns whether it has ended; else its folder does not answer, and
        nothing more is written there.
        """
        self._prefixes.attend(None)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience)
        if self._thread.is_alive():
            self._prefixes.write_no_more()
        return not self._thread.is_alive()

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process's
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._changed:
                while not (self._told or self._closing):
                    self._changed.wait()
                if self._closing:
                    return
                self._told = False
            self._prefixes.make_room()
            self._prefixes.save(lambda: self._closing)
