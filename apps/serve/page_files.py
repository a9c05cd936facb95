"""The web page at `/`: files of the folder `page`, and what a browser may do with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.apps.serve.errors import ApiError
from edge.apps.serve.responding import json_response
from edge.apps.serve.state import Served

if TYPE_CHECKING:
    from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing but our own files: what a model writes can't become a script, and can't send anything elsewhere."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def is_public(path: str) -> bool:
    """Whether a path is the page's, which asks for a key itself."""
    return path == "/" or path.startswith("/page/")


def routes(served: Served) -> list[Route]:
    """The page, and its files."""
    from starlette.responses import Response
    from starlette.routing import Route

    # Read once: no request can name a file that is not one of these.
    files = {path.name: path.read_bytes() for path in _files()}

    def file(name: str) -> Response:
        return Response(files[name], headers={**_HEADERS, "content-type": _TYPES[Path(name).suffix]})

    async def page(request: Any) -> Any:
        if "index.html" not in files:
            return json_response({"model": served.name, "api": "/v1", "document": "/openapi.json"})
        return file("index.html")

    async def part(request: Any) -> Any:
        name = request.path_params["name"]
        if name not in files:
            raise ApiError(404, f"The page has no file {name[:100]!r}.", code="not_found")
        return file(name)

    return [Route("/", page), Route("/page/{name}", part)]


def _files() -> list[Path]:
    if not FOLDER.is_dir():
        return []
    return [path for path in sorted(FOLDER.iterdir()) if path.is_file() and path.suffix in _TYPES]
