"""What `scripts/bench_peers.py` consists of.

`programs` declares what is compared, `models` makes its models, `parts` says what is run, `measuring` runs it
in turn, `comparison` makes the document. A `run_*.py` is a program of its own, which that peer's own Python
runs, with `llama_state` beside it.
"""
