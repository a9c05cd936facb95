"""From prompts to answers, above any executor: sessions, the decode loop, sampling, settings."""
