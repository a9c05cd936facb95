"""Answers prompts with llama.cpp's server: `python run_llama.py`, a worker as `comparison` has them.

Further fields of its job: server, its program, and arguments, what it gets beside the model and the threads.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 120.0  # seconds until it must be ready


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(job: dict[str, Any]) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    port = _free_port()
    command = [job["server"], "-m", job["model"], "-t", str(job["threads"]), "-c", str(job["context"])]
    command += ["--host", "127.0.0.1", "--port", str(port), *job["arguments"]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, address)
        yield address
    finally:
        process.terminate()
        process.communicate()


def _wait(process: subprocess.Popen[str], address: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            assert process.stderr is not None
            raise SystemExit(f"{process.stderr.read()[-2000:]}\nllama-server has ended.")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise SystemExit("llama-server is not ready in time.")


def answers(job: dict[str, Any], prompts: Iterable[list[int]]) -> Iterator[dict[str, Any]]:
    """One for each prompt: text, tokens, steps and seconds of those after the first, guesses and accepted."""
    with serving(job) as address:
        print("ready", flush=True)
        for prompt in prompts:
            body = {
                "prompt": prompt,
                "n_predict": job["max_new_tokens"],
                "temperature": 0,
                "cache_prompt": False,
                "return_tokens": True,
            }
            request = urllib.request.Request(
                f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=600) as reply:
                done = json.load(reply)
            timings = done["timings"]
            yield {
                "text": done["content"],
                "tokens": done["tokens"],
                "steps": timings["predicted_n"] - 1,
                "seconds": timings["predicted_ms"] / 1e3,
                "drafted": timings.get("draft_n", 0),
                "accepted": timings.get("draft_n_accepted", 0),
            }


if __name__ == "__main__":
    for answer in answers(json.loads(sys.stdin.readline()), map(json.loads, sys.stdin)):
        print(json.dumps(answer), flush=True)
