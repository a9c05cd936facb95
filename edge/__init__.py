"""MiniCPM Edge: run MiniCPM4 and Llama-shaped small models on laptops, phones and Jetsons.

    import edge

    with edge.load("smollm2-135m") as model:
        chat = model.chat(system="You are brief.")
        print(chat.send("What is a mortgage?").text)
        for chunk in chat.stream("And in five words?"):
            print(chunk.text, end="", flush=True)

Names are imported when they are first used, so that `import edge` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.chat import Chat
    from edge.engine.completion import Chunk, Completion
    from edge.engine.generation import Stream
    from edge.engine.session import Session
    from edge.engine.settings import SamplingParams
    from edge.errors import EdgeError
    from edge.runtime import Model, load
    from edge.system.notices import EdgeWarning
    from edge.text.messages import Message, Tool, ToolCall

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "Chunk",
    "Completion",
    "EdgeError",
    "EdgeWarning",
    "Message",
    "Model",
    "SamplingParams",
    "Session",
    "Stream",
    "Tool",
    "ToolCall",
    "__version__",
    "load",
]

_HOME = {
    "Chat": "edge.chat",
    "Chunk": "edge.engine.generation",
    "Completion": "edge.engine.generation",
    "EdgeError": "edge.errors",
    "EdgeWarning": "edge.system.notices",
    "Message": "edge.text.messages",
    "Model": "edge.runtime",
    "SamplingParams": "edge.engine.settings",
    "Session": "edge.engine.session",
    "Stream": "edge.engine.generation",
    "Tool": "edge.text.messages",
    "ToolCall": "edge.text.messages",
    "load": "edge.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
