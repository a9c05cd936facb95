"""`/v1/models`: what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.apps.serve.errors import ApiError
from edge.apps.serve.responding import json_response
from edge.apps.serve.state import Served
from edge.text.chat_template import supports_thinking

if TYPE_CHECKING:
    from starlette.routing import Route


def routes(served: Served) -> list[Route]:
    """The list, and each model by its name."""
    from starlette.routing import Route

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "minicpm-edge",
            "max_model_len": served.model.context,
            "x_edge": {"thinking": supports_thinking(served.model.files.chat_template or "")},
        }

    async def listed(request: Any) -> Any:
        models = [described(name) for name in served.listed_names]
        return json_response({"object": "list", "data": models})

    async def one(request: Any) -> Any:
        name = request.path_params["name"]
        if name not in served.names:
            raise ApiError(
                404, f"The model {name[:100]!r} is not served here.", param="model", code="model_not_found"
            )
        return json_response(described(name))

    return [Route("/v1/models", listed), Route("/v1/models/{name:path}", one)]
