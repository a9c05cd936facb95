"""`edge serve`: a model behind the APIs that clients speak, OpenAI's and what has grown around it."""
