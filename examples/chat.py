"""A chat in the terminal: answers appear as they are written, Ctrl-C stops one, Ctrl-D leaves.

python chat.py [MODEL]
"""

from __future__ import annotations

import sys

import edge


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    with edge.load(name) as model:
        # Where the conversation outgrows the context, its oldest turns are left out.
        chat = model.chat(context_policy="drop", max_new_tokens=400)
        while True:
            try:
                message = input("> ")
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if message.strip():
                try:
                    answer(chat, message)
                except edge.EdgeError as error:  # a message that is too long, say; the chat goes on
                    print(f"Error: {error}")


def answer(chat: edge.Chat, message: str) -> None:
    stream = chat.stream(message)
    try:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        pass  # the conversation keeps what there is of the answer
    done = stream.result
    facts = [f"{len(done.tokens)} tokens", f"{done.tokens_per_second:.0f} tokens/s", done.stop_reason]
    if done.ttft_seconds is not None:
        facts.insert(1, f"the first after {done.ttft_seconds:.2f} s")
    facts.append(f"prompt: {done.prompt_tokens} tokens, {done.reused_tokens} of them in the cache")
    print(f"\n[{', '.join(facts)}]")


if __name__ == "__main__":
    try:
        main()
    except edge.EdgeError as error:  # one sentence that says what to do
        sys.exit(f"Error: {error}")
