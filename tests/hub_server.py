"""A hub on localhost, which the real client of the hub downloads from."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """The few endpoints of the hub's API that downloading needs, over the files of a folder.

    Repositories are folders `org/name`; `org/gated` answers as a gated one does.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    EARLIER, LATER = "a" * 40, "f" * 40

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.main = self.COMMIT
        self.requests: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, revision: str) -> str | None:
        """Of the main branch, or a commit itself; None for others."""
        known = (self.COMMIT, self.EARLIER, self.LATER)
        return self.main if revision == "main" else revision if revision in known else None


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if self.server.broken:
            return self.reply(503, b"")
        if parts[:2] == ["api", "models"]:
            return self.api(self.server.root / parts[2] / parts[3], "/".join(parts[2:4]), parts[4:])
        repo, (word, revision, *name) = self.server.root / parts[0] / parts[1], parts[2:]
        if "gated" in repo.name:
            return self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        file = repo.joinpath(*name)
        commit = self.server.commit(revision)
        if word != "resolve" or commit is None or not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        return self.reply(200, data, headers)

    def api(self, repo: Path, repo_id: str, rest: list[str]) -> None:
        if not repo.is_dir():
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.commit(revision)
        if commit is None:
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in repo.rglob("*") if path.is_file())
        names = [file.relative_to(repo).as_posix() for file in files]
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": f"{index:040x}"}
                for index, (name, file) in enumerate(zip(names, files, strict=True))
            ]
            return self.reply(200, json.dumps(tree).encode())
        siblings = [{"rfilename": name} for name in names]
        content = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": []}
        return self.reply(200, json.dumps({**content, "private": False, "downloads": 0, "likes": 0}).encode())

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Tests read the server's list of requests instead."""
