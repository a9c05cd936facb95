"""Two conversations of one model at once, with a time limit and a cancelled task.

python stream_asyncio.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys

import edge


async def talk(chat: edge.Chat, name: str, question: str, seconds: float) -> edge.Completion:
    """Prints the answer as it is written; one that takes too long is cut off and kept as far as it got."""
    stream = chat.stream(question, max_new_tokens=400)

    async def consume() -> None:
        async for chunk in stream:
            print(f"{name}: {chunk.text!r}")

    try:
        await asyncio.wait_for(consume(), seconds)
    except asyncio.TimeoutError:  # Python 3.11's own name for it is TimeoutError
        print(f"{name}: time is up")
    return stream.result  # of a finished answer, so nothing is computed here


async def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    model = await asyncio.to_thread(edge.load, name)
    with model:
        # Chats share the weights, each has a KV cache of its own. The model computes in worker threads, so
        # the event loop stays free.
        first, second = model.chat(temperature=0), model.chat(temperature=0)
        answers = await asyncio.gather(
            talk(first, "first", "Why is the sky blue?", seconds=60),
            talk(second, "second", "Tell me a very long story.", seconds=0.5),
        )
        for done in answers:
            print(f"{done.stop_reason} after {len(done.tokens)} tokens: {done.text!r}")

        # A task that is cancelled (in a server, when its client leaves) ends the answer after the step that
        # is running. The conversation has what there was, and goes on.
        task = asyncio.create_task(talk(first, "third", "And now tell me a long story.", seconds=60))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        print(f"cancelled: {task.cancelled()}, the chat has {len(first.messages)} messages")

        done = await first.stream("And at night?", max_new_tokens=20)  # without chunks
        print(f"then: {done.text!r}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:  # the answers have ended by now, and the model is closed
        sys.exit("Interrupted.")
    except edge.EdgeError as error:
        sys.exit(f"Error: {error}")
