"""Foreign code in a process of its own, where a limit on time and memory can't be talked around.

Chat templates and tokenizers come with downloaded models and are programs: loops, regular expressions, rules
that replace text by longer text. `worker` starts and watches the process, `server` runs inside it, and the
other modules are what it serves. They import neither the rest of edge nor anything heavy, since a process
starts with each of them.
"""
