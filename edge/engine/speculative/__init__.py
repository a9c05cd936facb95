"""Speculation: guesses at how an answer goes on, verified many at a time, which never change the answer."""
