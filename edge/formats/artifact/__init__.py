"""The folders that `edge export` writes: a model for another runtime, with everything that it needs."""
