"""Times `edge serve` from outside: what HTTP, JSON and scheduling add to a token, streams, the first
token of a short prompt beside others, memory when idle, and a long conversation after a restart.

    python scripts/bench_server.py [--model random:minicpm4-0.5b] [--tokens 96] [--rounds 3] [--depth 2048]

The server is a process of its own on a free port; a client of plain sockets reads its streams, so that no
client library is measured. The same model answers in this process (`Model.stream`) in turn with the server at
one stream; while one of them computes, the other one sleeps. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

import edge

MARK = b"data: "


class Server:
    """`edge serve` on a free port."""

    def __init__(self, model: str, folder: Path, *arguments: str) -> None:
        started = perf_counter()
        command = [
            sys.executable,
            "-m",
            "edge",
            "serve",
            model,
            "--alias",
            "default",
            "--port",
            "0",
            "--prefix-folder",
            str(folder),
        ]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        while not (found := re.search(r'"at": "(http[^"]+)"', line := self.process.stderr.readline())):
            if not line:
                raise SystemExit("The server did not start.")
        self.at = urlsplit(found[1])
        self.start_seconds = perf_counter() - started
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def complete(self, prompt: list[int], tokens: int, **settings: Any) -> tuple[list[float], dict[str, Any]]:
        """When each event came, in seconds after the request, and the usage."""
        body = {
            "model": "default",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.at.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        times: list[float] = []
        answer = b""
        with socket.create_connection((self.at.hostname, self.at.port or 80)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            started = perf_counter()
            connection.sendall(head.encode() + data)
            while part := connection.recv(1 << 16):
                times += [perf_counter() - started] * part.count(MARK)
                answer += part
        usage = re.findall(rb'"usage":(\{.*?\}\})', answer)
        return times, json.loads(usage[-1])

    def private_bytes(self) -> int:
        """Memory that only the server's processes have, all of them together; mapped files are not in it."""
        main = psutil.Process(self.process.pid)
        return sum(
            part.private_dirty
            for each in (main, *main.children(recursive=True))
            for part in each.memory_maps(grouped=True)
        )

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait()


def prompt_of(seed: int, length: int, vocabulary: int) -> list[int]:
    return np.random.default_rng(seed).integers(100, vocabulary - 100, length).tolist()


def rate(times: list[float], tokens: int) -> float:
    """Tokens per second after the first; the last two events are the usage and the end."""
    return (tokens - 1) / (times[tokens - 1] - times[0])


def in_process(model: Any, prompt: list[int], tokens: int) -> float:
    times = []
    for _ in model.stream(prompt, max_new_tokens=tokens, temperature=0, ignore_eos=True):
        times.append(perf_counter())
    return (tokens - 1) / (times[tokens - 1] - times[0])


def overhead(server: Server, model: Any, options: argparse.Namespace, vocabulary: int) -> dict[str, Any]:
    """One stream, the server and this process in turn."""
    served, own = [], []
    for round_ in range(options.rounds):
        prompt = prompt_of(round_, 32, vocabulary)
        own.append(in_process(model, prompt, options.tokens))
        served.append(rate(server.complete(prompt, options.tokens)[0], options.tokens))
    added = [1e6 / s - 1e6 / o for s, o in zip(served, own, strict=True)]
    return {
        "server_tokens_per_second": [round(each, 2) for each in served],
        "in_process_tokens_per_second": [round(each, 2) for each in own],
        "added_microseconds_per_token": round(statistics.median(added), 1),
    }


def streams(server: Server, count: int, options: argparse.Namespace, vocabulary: int) -> float:
    """Tokens per second of so many streams together, from the last one's first token to the first end."""
    found: list[list[float]] = []
    begun = perf_counter()

    def run(seed: int) -> None:
        started = perf_counter() - begun
        times, _ = server.complete(prompt_of(100 + seed, 32, vocabulary), options.tokens)
        found.append([started + each for each in times[: options.tokens]])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = max(times[0] for times in found), min(times[-1] for times in found)
    return sum(first < at <= last for times in found for at in times) / (last - first)


def first_tokens(server: Server, options: argparse.Namespace, vocabulary: int) -> list[float]:
    """Seconds to the first token of prompts of 32 tokens beside 3 running streams."""
    over = threading.Event()

    def talk(seed: int) -> None:
        while not over.is_set():
            server.complete(prompt_of(200 + seed, 32, vocabulary), options.tokens)

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    server.complete(prompt_of(299, 32, vocabulary), 8)
    found = [server.complete(prompt_of(300 + n, 32, vocabulary), 2)[0][0] for n in range(options.first)]
    over.set()
    for thread in threads:
        thread.join()
    return found


def restart(model: str, options: argparse.Namespace, vocabulary: int, folder: Path) -> dict[str, Any]:
    """A long conversation that a killed server has left."""
    prompt = prompt_of(400, options.depth, vocabulary)
    server = Server(model, folder)
    cold, _ = server.complete(prompt, 2)
    while not list(folder.glob("*.kv")):
        threading.Event().wait(0.05)
    server.end(signal.SIGKILL)
    server = Server(model, folder)
    warm, usage = server.complete([*prompt, *prompt[:8]], 2)
    server.end()
    return {
        "tokens": options.depth,
        "cold_seconds": round(cold[0], 3),
        "back_seconds": round(warm[0], 3),
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "file_bytes": sum(path.stat().st_size for path in folder.glob("*.kv")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=int, default=20, help="prompts beside three streams")
    parser.add_argument("--depth", type=int, default=2048, help="tokens of the conversation that comes back")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = Server(options.model, folder / "idle", "--speculate", "off")
        idle = server.private_bytes()
        with edge.load(options.model, speculate="off") as model:
            vocabulary = model.config.vocab_size
            one = overhead(server, model, options, vocabulary)
            machine = {"cpu": model.executor.info.tier, "threads": model.executor.info.threads}
        after_one = server.private_bytes()
        rates = [
            (streams(server, 1, options, vocabulary), streams(server, 4, options, vocabulary))
            for _ in range(options.rounds)
        ]
        beside = first_tokens(server, options, vocabulary)
        server.end()
        back = restart(options.model, options, vocabulary, folder / "restart")
    document = {
        "schema": 1,
        "machine": {"system": platform.platform(), "load": psutil.getloadavg()[0], **machine},
        "options": vars(options),
        "start_seconds": round(server.start_seconds, 3),
        "idle_private_bytes": idle,
        "private_bytes_after_answers": after_one,
        "one_stream": one,
        "streams": {
            "one_tokens_per_second": [round(one_rate, 2) for one_rate, _ in rates],
            "four_tokens_per_second": [round(four, 2) for _, four in rates],
            "ratio": round(statistics.median(four / one_rate for one_rate, four in rates), 3),
        },
        "first_token_beside_three": {
            "p50_seconds": round(float(np.percentile(beside, 50)), 4),
            "p95_seconds": round(float(np.percentile(beside, 95)), 4),
        },
        "restart": back,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
