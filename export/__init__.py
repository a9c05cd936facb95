"""Export: quantize a checkpoint, and lower it to what a phone runs. Needs torch (extra `export`)."""
