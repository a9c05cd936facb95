"""Text to token ids and back: SentencePiece and byte-level BPE behind one protocol.

`base` holds the protocol and the streaming decoder, `segments` what both kinds share, `sentencepiece_model`
and `tokenizers_json` the two kinds, `settings` the small JSON files beside them, `from_gguf` the way in from
GGUF.
"""

from edge.text.tokenizer.base import StreamDecoder, Tokenizer
from edge.text.tokenizer.from_gguf import tokenizer_files_from_gguf
from edge.text.tokenizer.load import load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer", "tokenizer_files_from_gguf"]
