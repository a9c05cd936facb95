"""One server from its start to its end, and the clients that it has meanwhile."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlunsplit

import httpx

from scripts.server.client import Server, random_prompt

from .known import KNOWN, PATIENCE, Known, answer
from .report import Conversation, Report
from .rude import LARGEST, LONG, RUDE

CLIENTS = 6
_CONVERSATIONS, _LONGEST = 3, 2000  # tokens of the longest
_SAMPLES = 12  # of memory, in a life
_SAVING = 60.0  # seconds until a file has to be there, on a machine that does other things too
_VOCABULARY = 49152
_ARGUMENTS = ("--max-request", str(LARGEST), "--queue", "8", "--time-limit", "300", "--drain", "3")


class Life:
    """Clients stop between two requests while the gate is closed, and for good when the life is over."""

    def __init__(
        self, report: Report, folder: Path, model: str, seconds: float, arguments: Sequence[str] = ()
    ) -> None:
        """folder: of prefixes and the log. seconds: once every known request was made and the conversations
        have grown. arguments: of the server, beside those of all lives.
        """
        self._report, self._folder, self._seconds = report, folder / "prefixes", seconds
        self._chance = random.Random(f"{report.seed} {report.lives}")
        self._gate, self._over = threading.Event(), threading.Event()
        self._busy, self._changed = 0, threading.Condition()
        pairs = [(known, stream) for known in KNOWN for stream in (False, True)]
        self._chance.shuffle(pairs)
        self._first: deque[tuple[Known, bool]] = deque(pairs)  # then memory is watched
        self._server = Server(model, self._folder, (*_ARGUMENTS, *arguments), folder / "server.log")
        self._address = urlunsplit(self._server.at)
        self._client = self._connect()

    def _connect(self) -> httpx.Client:
        return httpx.Client(base_url=self._address, timeout=PATIENCE)

    def run(self) -> None:
        """All of it; what is wrong stands in the report."""
        report, samples = self._report, list[int]()
        with self._server, self._client:
            for conversation in report.conversations:
                self._again(conversation)
            for known in KNOWN if not report.quiet else ():
                self._ask_quietly(known)
            threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            begun = time.monotonic()
            self._gate.set()
            while len(report.conversations) < _CONVERSATIONS:
                report.made += 1
                report.conversations.append(Conversation(report.made, 0))
            for conversation in report.conversations:
                self._grow(conversation)
            for conversation in report.conversations:
                self._again(conversation)
            for path, body in LONG:
                self._report.counted("long", self._client.post(path, json=body).status_code)
            while self._first and not report.is_full:
                time.sleep(0.1)
            warm = time.monotonic()
            while (left := self._seconds - (time.monotonic() - warm)) > 0 and not report.is_full:
                time.sleep(min(left, self._seconds / _SAMPLES))
                samples.append(self._sample())
                self._again(self._chance.choice(report.conversations))
            last = threading.Thread(target=self._grow, args=(self._chance.choice(report.conversations),))
            last.start()
            self._end()
            for thread in (*threads, last):
                thread.join()
        report.seconds += time.monotonic() - begun
        report.lives += 1
        report.remembered(samples)
        report.conversations = [each for each in report.conversations if each.length < _LONGEST]

    # ---- clients -------------------------------------------------------------------------------------------

    def _talk(self, number: int) -> None:
        chance = random.Random(f"{self._report.seed} {self._report.lives} {number}")
        with self._connect() as client:
            while True:
                self._gate.wait()
                if self._over.is_set():
                    return
                self._count(1)
                try:
                    self._ask(client, chance)
                except Exception as error:  # a client that ends by one would leave the server in peace
                    self._report.finding(f"a client: {error!r}")
                finally:
                    self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._busy += more
            self._changed.notify_all()

    def _ask(self, client: httpx.Client, chance: random.Random) -> None:
        if chance.random() < 0.5:
            try:
                known, stream = self._first.popleft()
            except IndexError:
                known, stream = chance.choice(KNOWN), chance.random() < 0.5
            self._compare(client, known, stream)
            return
        (rude,) = chance.choices([*RUDE], [*RUDE.values()])
        status = None
        with suppress(OSError, httpx.TransportError):  # such a connection may be closed at any moment
            status = rude(self._server.at, client, chance)
        if not self._over.is_set():
            self._report.counted(rude.__name__, status)

    def _compare(self, client: httpx.Client, known: Known, stream: bool) -> None:
        try:
            status, texts = answer(client, known, stream)
        except (httpx.TransportError, ValueError, KeyError):  # ValueError, KeyError: a stream that was cut
            if self._over.is_set():
                return
            raise
        if self._over.is_set():
            return
        self._report.counted("stream" if stream else "whole", status)
        if status == 200:
            self._report.answered(known.name, texts)
        elif status not in (429, 503, 504):
            self._report.finding(f"{known.name}: status {status}: {texts}")

    # ---- what is watched -----------------------------------------------------------------------------------

    def _ask_quietly(self, known: Known) -> None:
        status, texts = answer(self._client, known, stream=False)
        if status != 200:
            raise SystemExit(f"{known.name}: status {status} of a quiet server: {texts}")
        self._report.quiet[known.name] = texts

    def _sample(self) -> int:
        """Private bytes while nobody asks."""
        self._gate.clear()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, PATIENCE)
        end = time.monotonic() + _SAVING
        while (load := self._client.get("/health").json())["running"] or load["waiting"]:
            if time.monotonic() > end:
                self._report.finding(f"answers go on for nobody: {load}")
                break
            time.sleep(0.05)
        found = self._server.private_bytes()
        self._gate.set()
        return found

    def _prompt(self, conversation: Conversation, length: int) -> list[int]:
        return random_prompt(conversation.seed, _LONGEST + 1000, _VOCABULARY)[:length]

    def _continue(self, prompt: list[int]) -> int | None:
        """Cached tokens of a prompt; None where the server has ended."""
        body = {"model": "default", "prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        while True:
            try:
                response = self._client.post("/v1/completions", json=body)
            except httpx.TransportError:
                if self._over.is_set():
                    return None
                raise
            if not self._over.is_set():
                self._report.counted("conversation", response.status_code)
            if response.status_code == 200:
                return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
            if response.status_code != 429:
                return None
            time.sleep(0.2)

    def _again(self, conversation: Conversation) -> None:
        """Ask what is saved once more."""
        if conversation.saved:
            cached = self._continue(self._prompt(conversation, conversation.saved))
            if cached is not None:
                self._report.found_again(conversation, cached)

    def _grow(self, conversation: Conversation) -> None:
        """Go on by some hundred tokens, and wait until a file has them."""
        length = max(1100, conversation.length) + self._chance.randrange(250, 400)
        before = self._files()
        cached = self._continue(self._prompt(conversation, length))
        if cached is None:
            return
        self._report.found_again(conversation, cached)
        conversation.length = length
        end = time.monotonic() + _SAVING
        while not self._over.is_set() and time.monotonic() < end:
            if self._files() - before:
                conversation.saved = length
                return
            time.sleep(0.05)

    def _files(self) -> set[Path]:
        return set(self._folder.glob("*.kv"))

    def _end(self) -> None:
        """kill -9, or SIGTERM every third time, at some moment of the traffic."""
        time.sleep(self._chance.uniform(0, 2))
        process, politely = self._server.process, self._report.lives % 3 == 2
        if (code := process.poll()) is not None:
            self._report.finding(f"the server has ended by itself with exit code {code}")
        self._over.set()
        self._gate.set()
        process.send_signal(signal.SIGTERM if politely else signal.SIGKILL)
        code = process.wait(PATIENCE)
        name = "SIGTERM" if politely else "kill -9"
        self._report.ends[name] = self._report.ends.get(name, 0) + 1
        if politely and code != 0:
            self._report.finding(f"exit code {code} after SIGTERM")
