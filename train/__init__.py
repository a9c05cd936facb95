"""Training: how the checkpoints come to be that the runtime needs. Needs torch (extra `train`)."""
