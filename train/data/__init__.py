"""Text to training batches: documents, tokenizers, token shards, and the loader that packs and mixes them."""
