"""What `scripts/bench_server.py` is made of: servers as processes, and the parts that it measures."""
