"""Things people run."""
