"""`/health` and `/metrics`: for what watches the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.apps.serve.responding import json_response
from edge.apps.serve.state import Served

if TYPE_CHECKING:
    from starlette.routing import Route


def routes(served: Served) -> list[Route]:
    """Both."""
    from starlette.responses import Response
    from starlette.routing import Route

    async def health(request: Any) -> Any:
        status = "draining" if served.is_draining else "ok"
        facts = {"status": status, "model": served.name, **vars(served.driver.load)}
        return json_response(facts, 503 if served.is_draining else 200)

    async def metrics(request: Any) -> Response:
        text, kind = served.metrics.text()
        return Response(text, headers={"content-type": kind})

    return [Route("/health", health), Route("/metrics", metrics)]
