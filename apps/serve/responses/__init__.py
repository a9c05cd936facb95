"""`/v1/responses`: OpenAI's Responses API, which Open Responses describes for everybody."""
