"""Files of this project: bundles, exported folders, safetensors, KV caches; and how files are written."""
