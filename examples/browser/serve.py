"""Serves a folder at http://localhost:8000 with the headers that threads of WebAssembly need.

python serve.py [FOLDER]
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Handler(SimpleHTTPRequestHandler):
    """Files, for pages that may share memory between threads ("cross-origin isolated")."""

    def end_headers(self) -> None:
        """Both headers on every file."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    print("http://localhost:8000")
    ThreadingHTTPServer(("localhost", 8000), partial(Handler, directory=folder)).serve_forever()
